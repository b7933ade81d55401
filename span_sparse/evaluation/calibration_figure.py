"""Can the probabilities of a split be taken at their word?

The reliability curve: in each of ten bins the mean predicted probability against the share observed, with Wilson's
interval (J. Am. Stat. Assoc. 22, 1927), and how many slides the bin has. A bin of three slides says nothing, and
without bars and counts it looks like one of three hundred.
"""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from span_sparse.evaluation.estimates import sample_values
from span_sparse.evaluation.figures import DPI, OKABE_ITO, STYLE, counts_text
from span_sparse.evaluation.predictions import PredictionTable
from span_sparse.evaluation.statistics import classification_measures, reliability_table


def calibration_figure(table: PredictionTable, *, title: str, level: float = 0.95) -> Figure | None:
    """The reliability curve of the labelled slides, or `None` when there are none.

    Args:
        table: predictions of one split.
        title: above the picture.
        level: of the bars.
    """
    labelled = table.labelled()
    if not labelled.num_slides:
        return None
    bins = reliability_table(labelled)
    used = bins.loc[bins["num_slides"] > 0]
    values = sample_values(classification_measures(labelled))
    is_binary = len(table.class_names) == 2
    low, high = wilson_interval(used["observed"].to_numpy(), used["num_slides"].to_numpy(), level)
    mean, observed = used["mean_predicted"].to_numpy(), used["observed"].to_numpy()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 6.8), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        axes.plot([0, 1], [0, 1], color="0.55", linestyle=(0, (1, 2)), linewidth=1.2, label="perfectly calibrated")
        axes.errorbar(
            mean, observed, yerr=np.stack([observed - low, high - observed]).clip(min=0), color=OKABE_ITO[0],
            marker="o", linewidth=2, elinewidth=1.2, capsize=3,
            label=f"ECE {values['ece']:.3f}, Brier {values['brier']:.3f}\n{level:.0%} bars (Wilson, slides)",
        )  # fmt: skip
        name = table.class_names[1].replace("$", r"\$")
        of = f"that are {name if len(name) <= 24 else name[:23] + '…'}" if is_binary else "whose class is right"
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), title=title, ylabel=f"Observed share of slides {of}")
        axes.grid(color="0.9", linewidth=0.7)
        axes.legend(loc="best", framealpha=0.95)
        width = bins["high"] - bins["low"]
        counts.bar(bins["low"], bins["num_slides"], width=width, align="edge", color=OKABE_ITO[5], edgecolor="white")
        what = "Predicted probability" if is_binary else "Highest predicted probability"
        counts.set(xlabel=f"{what}\n{counts_text(labelled)}", ylabel="Slides")
        counts.yaxis.get_major_locator().set_params(integer=True, nbins=4)
    return figure


def wilson_interval(
    share: NDArray[np.float64], number: NDArray[np.int64], level: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Wilson's score interval of observed shares.

    Args:
        share: of successes, each in [0, 1].
        number: of trials, each at least 1.
        level: of the interval.

    >>> [bound.round(3).tolist() for bound in wilson_interval(np.array([0.5]), np.array([10]), 0.95)]
    [[0.237], [0.763]]
    """
    z_squared = stats.norm.isf((1 - level) / 2) ** 2
    centre = (share + z_squared / (2 * number)) / (1 + z_squared / number)
    spread = np.sqrt(z_squared * (share * (1 - share) / number + z_squared / (4 * number**2))) / (
        1 + z_squared / number
    )
    return centre - spread, centre + spread
