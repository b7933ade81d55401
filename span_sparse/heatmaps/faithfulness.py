"""Does the answer hang on the patches with high scores? Take them away and look.

With k of a slide's n patches left, for ten shares k/n up to 1:

* deletion keeps the k patches with the lowest scores; a faithful score makes the answer fall with the first that go;
* insertion keeps the k with the highest; a faithful score makes few of them enough;
* random keeps any k (mean over a few orders), what a score without meaning would do.

The area of a curve is its mean height over the shares. Gains: random minus deletion, insertion minus random; above 0 is
better than chance. (Samek et al., IEEE TNNLS 2017; Petsiuk et al., RISE, BMVC 2018.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.integrate import trapezoid

from span_sparse.files import replacing, write_atomically
from span_sparse.wsi.qc_picture import drawable

NUM_STEPS: Final = 10
NUM_RANDOM: Final = 5
STYLES: Final = {"insertion": ("#0072b2", "-"), "random": ("#666666", "--"), "deletion": ("#d55e00", "-")}
WORDS: Final = {
    "insertion": "the highest scores are left",
    "random": "random patches are left",
    "deletion": "the lowest scores are left",
}


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """Answers for parts of a slide.

    Attributes:
        kept: share of patches that are left, ascending, the last one 1, `[steps]`.
        deletion: answer with the lowest scores.
        insertion: answer with the highest scores.
        random: answer with random patches.
    """

    kept: NDArray[np.float64]
    deletion: NDArray[np.float64]
    insertion: NDArray[np.float64]
    random: NDArray[np.float64]

    def area(self, name: str) -> float:
        """Mean height of a curve; of a slide with one patch, where there is one point, that answer."""
        heights = getattr(self, name)
        if len(self.kept) == 1:
            return float(heights[0])
        return float(trapezoid(heights, self.kept) / (self.kept[-1] - self.kept[0]))

    def figures(self) -> dict[str, float]:
        """Answer for the whole slide, areas and gains, by the names of the columns of `faithfulness.csv`."""
        areas = {name: self.area(name) for name in STYLES}
        return {
            "answer": float(self.insertion[-1]),
            **{f"{name}_area": area for name, area in areas.items()},
            "deletion_gain": areas["random"] - areas["deletion"],
            "insertion_gain": areas["insertion"] - areas["random"],
        }


def removal_curves(
    answer: Callable[[NDArray[np.intp]], float],
    scores: NDArray[np.floating],
    *,
    steps: int = NUM_STEPS,
    num_random: int = NUM_RANDOM,
    seed: int = 0,
) -> Curves:
    """Curves of one slide.

    Args:
        answer: of the model when only these rows are left.
        scores: of every patch.
        steps: shares that are tried; fewer for a slide of fewer patches.
        num_random: random orders.
        seed: of these.
    """
    num_patches = len(scores)
    counts = np.unique(np.maximum(1, np.rint(np.arange(1, steps + 1) / steps * num_patches).astype(np.int64)))
    ascending = np.argsort(scores, kind="stable")
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(num_patches) for _ in range(num_random)]

    def curve(order: NDArray[np.intp]) -> NDArray[np.float64]:
        return np.array([answer(order[:count]) for count in counts])

    random = np.mean([curve(order) for order in orders], axis=0)
    return Curves(counts / num_patches, curve(ascending), curve(ascending[::-1]), random)


def write_faithfulness(output: Path, rows: Sequence[tuple[str, str, Curves]]) -> None:
    """Write `faithfulness.csv`, a row for each slide, and `faithfulness.png`, the mean curves.

    Args:
        output: folder of the heatmaps.
        rows: slide, score and curves of each slide; at least one.

    Raises:
        OSError: the folder cannot be written.
    """
    frame = pd.DataFrame([{"slide_id": slide, "score": score, **curves.figures()} for slide, score, curves in rows])
    content = frame.to_csv(index=False, lineterminator="\n", float_format="%.7g").encode()
    write_atomically(output / "faithfulness.csv", content)
    figure = _figure([curves for _, _, curves in rows], " and ".join(dict.fromkeys(score for _, score, _ in rows)))
    with replacing(output / "faithfulness.png") as file:
        figure.savefig(file, format="png", metadata={"Software": "span-sparse"})


def _figure(curves: Sequence[Curves], score: str) -> Figure:
    """Means over the slides, with their standard error as a band."""
    shares = np.linspace(1 / NUM_STEPS, 1, 2 * NUM_STEPS - 1)
    figure = Figure(figsize=(6.0, 4.8), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, (colour, dashes) in STYLES.items():
        heights = np.stack([np.interp(shares, one.kept, getattr(one, name)) for one in curves])
        area = np.mean([one.area(name) for one in curves])
        axes.plot(100 * shares, heights.mean(axis=0), dashes, color=colour, label=f"{WORDS[name]} (area {area:.3f})")
        if len(curves) > 1:
            middle, error = heights.mean(axis=0), heights.std(axis=0, ddof=1) / np.sqrt(len(curves))
            axes.fill_between(100 * shares, middle - error, middle + error, color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel="patches left, % of the slide", ylabel="answer (probability, risk or number)", xlim=(0, 100))
    slides = "1 slide" if len(curves) == 1 else f"{len(curves)} slides: mean ± standard error"
    axes.set_title(drawable(f"Order by {score}; {slides}"), fontsize=9, parse_math=False)
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center")
    return figure
