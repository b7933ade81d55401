"""How often does the model put the patient who died earlier at the higher risk?

Harrell's C (Harrell et al., JAMA 247, 1982): of all pairs of patients whose order is known, because the earlier time of
the two is an event, the share in which the earlier one has the higher risk; equal risks count half. A pair of equal
times is ordered where exactly one of the two had the event then: the other outlived it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def concordance_index(
    time: NDArray[np.floating[Any]], event: NDArray[np.bool_], risk: NDArray[np.floating[Any]]
) -> float:
    """Harrell's C.

    Args:
        time: of the event or of the end of the follow-up, `[patients]`, any unit.
        event: whether the event was seen, `[patients]`.
        risk: higher is worse, `[patients]`.

    Returns:
        Between 0 and 1, 0.5 for risks that say nothing; NaN where no pair is ordered.

    >>> concordance_index(np.array([1.0, 2.0, 3.0]), np.array([True, True, False]), np.array([0.9, 0.2, 0.5]))
    0.6666666666666666
    """
    concordant = ordered = 0.0
    for patient in np.flatnonzero(event):
        outlived = (time > time[patient]) | ((time == time[patient]) & ~event)
        ordered += np.count_nonzero(outlived)
        concordant += np.count_nonzero(risk[outlived] < risk[patient])
        concordant += 0.5 * np.count_nonzero(risk[outlived] == risk[patient])
    return concordant / ordered if ordered else float("nan")
