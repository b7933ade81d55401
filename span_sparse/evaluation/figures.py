"""What do the predicted classes of a split look like?

Two pictures: the ROC curve (two classes: one curve with a pointwise bootstrap band; more: one curve per class against
the rest) and the confusion matrix (slides, and share of the true class); `calibration_figure.py` and
`survival_figure.py` have others. Colours are those of Okabe and Ito, told apart by every kind of colour vision; curves
differ in their dashes too. The number of slides and patients stands in every picture: without it a curve of seven
slides looks as sure as one of seven hundred.

Figures are drawn on the Agg canvas without pyplot, so that nothing here needs a display or keeps global state.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve

from span_sparse.evaluation import bootstrap
from span_sparse.evaluation.estimates import DEFAULT_RESAMPLES
from span_sparse.evaluation.predictions import PredictionTable
from span_sparse.evaluation.statistics import auc_classes, classification_metrics
from span_sparse.files import write_atomically

OKABE_ITO: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
DASHES: Final = ("-", "--", "-.", ":")
DPI: Final = 150
_GRID: Final = np.linspace(0.0, 1.0, 201)
STYLE: Final[Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "legend.fontsize": 10,
    "svg.hashsalt": "span-sparse",
    "svg.fonttype": "none",
}


def roc_figure(
    table: PredictionTable, *, title: str, resamples: int = DEFAULT_RESAMPLES, seed: int = 0, level: float = 0.95
) -> Figure | None:
    """The ROC curve of the labelled slides, or `None` when fewer than two classes occur.

    Args:
        table: predictions of one split.
        title: above the picture, for example the name of the split.
        resamples: drawings behind the band and the interval.
        seed: of the drawings.
        level: of the band, pointwise, and of the interval.
    """
    labelled = table.labelled()
    classes = auc_classes(labelled)
    if not classes:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 5.9), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color="0.55", linestyle=(0, (1, 2)), linewidth=1.2, label="chance, AUC 0.500")
        if len(table.class_names) == 2:
            metrics = classification_metrics(labelled, resamples=resamples, seed=seed, level=level)
            text = f"AUC {metrics.auc:.3f}"
            if metrics.auc_ci is not None:
                low, high = _band(labelled, resamples=resamples, seed=seed, level=level)
                axes.fill_between(
                    _GRID, low, high, color=OKABE_ITO[0], alpha=0.2, linewidth=0, label=f"{level:.0%} band, pointwise"
                )
                text += f" ({level:.0%} CI {metrics.auc_ci[0]:.3f}–{metrics.auc_ci[1]:.3f})"
            _curve(axes, labelled, 1, colour=0, text=text)
        else:
            for number, label in enumerate(classes):
                area = roc_auc_score(labelled.true_index == label, labelled.probabilities[:, label])
                slides = int((labelled.true_index == label).sum())
                text = f"{_short(table.class_names[label])}, n = {slides}, AUC {area:.3f}"
                _curve(axes, labelled, label, colour=number, text=text)
        positive = f" for {_short(table.class_names[1])}" if len(table.class_names) == 2 else ", one against the rest"
        axes.set(
            xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", title=title,
            xlabel=f"False positive rate (1 − specificity)\n{counts_text(labelled)}",
            ylabel=f"True positive rate (sensitivity){positive}",
        )  # fmt: skip
        axes.grid(color="0.9", linewidth=0.7)
        if len(table.class_names) == 2:
            axes.legend(loc="lower right", framealpha=0.95)
        else:
            figure.legend(loc="outside lower center", ncols=1 if len(classes) < 5 else 2, fontsize=9)
    return figure


def confusion_figure(table: PredictionTable, *, title: str) -> Figure | None:
    """The confusion matrix of the labelled slides, or `None` when there are none.

    Args:
        table: predictions of one split.
        title: above the picture.
    """
    labelled = table.labelled()
    if not labelled.num_slides:
        return None
    names = [_short(name) for name in table.class_names]
    counts = confusion_matrix(labelled.true_index, labelled.predicted_index, labels=np.arange(len(names)))
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    with mpl.rc_context(STYLE):
        edge = min(3.6 + 0.85 * len(names), 14.0)
        figure = Figure(figsize=(edge + 1.2, edge), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        image = axes.imshow(shares, cmap="cividis", vmin=0.0, vmax=1.0)
        for (row, column), share in np.ndenumerate(shares):
            shown = f"{counts[row, column]}\n{share:.0%}" if totals[row, 0] else "0\n–"
            axes.text(column, row, shown, ha="center", va="center", color="black" if share > 0.45 else "white")
        if max(map(len, names)) <= 11:
            axes.set_xticks(range(len(names)), names)
        else:
            axes.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
        rows = [f"{name}\nn = {total}" for name, total in zip(names, totals[:, 0], strict=True)]
        axes.set_yticks(range(len(names)), rows)
        axes.set(
            title=title,
            xlabel=f"Predicted class\n{counts_text(labelled)}",
            ylabel="True class",
        )
        bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.04)
        bar.set_label("Share of the true class")
        bar.ax.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    return figure


def write_figure(figure: Figure, path: Path) -> tuple[Path, Path]:
    """Write a figure as PNG and SVG, the same bytes for the same figure.

    Args:
        figure: what to write.
        path: with suffix `.png`; the SVG lies beside it.

    Returns:
        The two files.
    """
    written = path.with_suffix(".png"), path.with_suffix(".svg")
    for target in written:
        buffer = io.BytesIO()
        metadata = {"Date": None} if target.suffix == ".svg" else {"Software": None}
        with mpl.rc_context(STYLE):
            figure.savefig(buffer, format=target.suffix[1:], metadata=metadata, bbox_inches="tight", pad_inches=0.1)
        write_atomically(target, buffer.getvalue())
    return written


def _curve(axes: Any, labelled: PredictionTable, class_index: int, *, colour: int, text: str) -> None:
    positive, scores = labelled.true_index == class_index, labelled.probabilities[:, class_index]
    false_rate, true_rate, _ = roc_curve(positive, scores, drop_intermediate=False)
    axes.plot(
        false_rate,
        true_rate,
        color=OKABE_ITO[colour % len(OKABE_ITO)],
        linestyle=DASHES[colour % len(DASHES)],
        linewidth=2,
        label=text,
    )


def _band(
    labelled: PredictionTable, *, resamples: int, seed: int, level: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentiles of the true positive rate at each false positive rate of `_GRID`, over drawings of cases."""
    true_index, scores = labelled.true_index, labelled.probabilities[:, 1]
    weights = bootstrap.draw_cases(true_index, labelled.case_index, resamples=resamples, seed=seed).slide_weights
    rates = np.stack([_true_rates(true_index == 1, scores, row) for row in weights])
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def _true_rates(positive: NDArray[np.bool_], scores: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[Any]:
    """The curve of one drawing, read at `_GRID`; at a vertical step its upper end."""
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.r_[np.diff(scores[order]) != 0, True]
    true_rate = np.cumsum((weights * positive)[order])[last_of_tie]
    false_rate = np.cumsum((weights * ~positive)[order])[last_of_tie]
    true_rate, false_rate = np.r_[0.0, true_rate / true_rate[-1]], np.r_[0.0, false_rate / false_rate[-1]]
    # Where several points share a false positive rate, the interval to the right of x starts at the last, upper one;
    # the shift makes rates equal to a grid point but for rounding fall on the same side.
    return np.interp(_GRID + 1e-12, false_rate, true_rate)


def counts_text(labelled: PredictionTable) -> str:
    """How much a picture rests on."""
    slides, cases = labelled.num_slides, len(np.unique(labelled.case_index))
    return f"n = {slides} slide{'s' * (slides != 1)} of {cases} patient{'s' * (cases != 1)}"


def _short(name: str) -> str:
    """A class name that fits beside an axis and is not taken for a formula."""
    return (name if len(name) <= 24 else name[:23] + "…").replace("$", r"\$")
