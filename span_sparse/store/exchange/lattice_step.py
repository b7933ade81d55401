"""How far apart are neighbouring patches?

1. What the file or the user states, if the distances of neighbours agree with it; a contradiction is an error.
2. Else the greatest common divisor of all differences, if neighbours do lie that far apart.
3. Else what the caller thinks likely, or the most frequent distance, if most distances are multiples of it.

The greatest common divisor alone is 1 as soon as one patch lies off the lattice, and the smallest distance alone is too
large where tissue is sparse.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from span_sparse.errors import LatticeError

_MIN_SHARE: Final = 0.1
"""So many neighbours must lie at the greatest common divisor for it to be the step, not an accident of residues."""

_FEW_NEIGHBOURS: Final = 10


@dataclass(frozen=True, slots=True)
class StepKnowledge:
    """What is known of the step before looking at the coordinates.

    Attributes:
        stated_px0: what the file or the user states; a contradiction is an error.
        slack_px0: the statement is rounded to within so much.
        likely_px0: used where the coordinates cannot tell, for example the patch's edge.
        tolerance_px0: the format stores coordinates rounded to within so much of their lattice.
    """

    stated_px0: float | None = None
    slack_px0: float = 0.0
    likely_px0: float | None = None
    tolerance_px0: float = 0.0


def neighbour_distances(coords: NDArray[np.int64]) -> NDArray[np.int64]:
    """Distances of patches that follow each other in a row or a column, positive, in any order."""
    found: list[NDArray[np.int64]] = []
    for along, across in ((0, 1), (1, 0)):
        ordered = coords[np.lexsort((coords[:, along], coords[:, across]))]
        steps = np.diff(ordered, axis=0)
        found.append(steps[(steps[:, across] == 0) & (steps[:, along] > 0), along])
    return np.concatenate(found)


def find_step(coords: NDArray[np.int64], knowledge: StepKnowledge) -> tuple[int, str]:
    """The step and how it was found."""
    divisor = int(np.gcd.reduce((coords - coords[0]).ravel()))
    near = neighbour_distances(coords)
    if knowledge.stated_px0 is not None:
        return _stated_step(divisor, near, knowledge.stated_px0, knowledge.slack_px0), "stated"
    likely = None if knowledge.likely_px0 is None else round(knowledge.likely_px0)
    if divisor and likely and divisor % likely == 0 and len(near) < _FEW_NEIGHBOURS:
        return likely, "likely: too few patches to measure it"
    counts = Counter(near.tolist())
    common = max(counts, key=lambda distance: (counts[distance], -distance)) if counts else 0
    if divisor and (divisor == common or (len(near) and (near == divisor).mean() >= _MIN_SHARE)):
        return divisor, "measured: greatest common divisor"
    for step, source in ((likely, "likely: neighbours lie so"), (common, "measured: most frequent distance")):
        if step and len(near) and _share(near, step) >= 0.5:
            return step, source
    if likely and (not divisor or divisor % likely == 0):
        return likely, "likely: too few patches to measure it"
    raise LatticeError(
        f"the step of the lattice cannot be told from {len(coords)} patches and the file does not state it; "
        "pass --step, the distance of neighbouring patches in level-0 pixels"
    )


def _stated_step(divisor: int, near: NDArray[np.int64], stated: float, slack: float) -> int:
    """The whole number nearest to what is stated that the coordinates agree with."""
    candidates = range(max(1, int(np.ceil(stated - slack - 1e-6))), int(np.floor(stated + slack + 1e-6)) + 1)
    nearest = sorted(candidates or [max(1, round(stated))], key=lambda step: abs(step - stated))
    for step in nearest:
        if divisor % step == 0:
            return step
    best = max(nearest, key=lambda step: _share(near, step))
    if len(near) and _share(near, best) < 0.5:
        common = Counter(near.tolist()).most_common(1)[0][0]
        raise LatticeError(
            f"a step of {stated:g} px is stated, but neighbours lie {common} px apart (of {len(near)} distances "
            f"{_share(near, best):.0%} are multiples of {best}); correct the statement or pass --step {common}"
        )
    return best


def _share(near: NDArray[np.int64], step: int) -> float:
    return float((near % step == 0).mean()) if len(near) else 0.0
