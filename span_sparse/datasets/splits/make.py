"""How are patients dealt to train, val and test?

1. A group is what must stay together: the slides of a case, cases with the same value of the group column and, on
   request, everything of a site. Groups that share a case are one group, so a case is never on two sides whatever the
   group column says.
2. What is counted is the patient: each (case, label) pair counts once. A case with slides of several labels counts for
   each of them; no label is chosen for it, and it is not refused. Slides without a label take no part.
3. Groups are dealt one by one in a shuffled order, each to the side whose classes are the least filled. So a class with
   as many groups as there are sides reaches every side. Of several orders the one closest to the wanted shares is kept.
4. `kfold` deals k equal sides, each is the test side once, and deals train and val from the rest. `montecarlo` deals
   the three sides anew for every fold, `fixed` does so once.

Scikit-learn's StratifiedGroupKFold gives k equal sides only, there is no grouped and stratified draw of given shares,
and its result changes with its version and with the order of the rows. Here the order is that of
SHA-256(seed, fold, group), which depends on neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from span_sparse.cohort import CASE_ID, CohortTable
from span_sparse.datasets.splits.table import Splits, cases_of
from span_sparse.errors import CohortError, ConfigError

DEFAULT_FOLDS: Final = 5
NUM_ORDERS: Final = 32
"""Shuffled orders that are tried; one is enough unless groups are unequal."""

Method = Literal["kfold", "montecarlo", "fixed"]


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """What kind of split to make.

    Attributes:
        label: column of the classes.
        method: `kfold`, `montecarlo` or `fixed`.
        folds: number of folds; None for 5, and for `fixed` 1.
        val_fraction: share of all patients that validate, in (0, 1).
        test_fraction: share of all patients that test, in [0, 1); None for 0.2. With `kfold` it is 1/folds.
        group: column whose values stay together, besides the case.
        site_aware: `group` keeps each site on one side; `none` ignores sites.
        site_column: column of the sites.
        seed: of the shuffling.
    """

    label: str = "label"
    method: Method = "kfold"
    folds: int | None = None
    val_fraction: float = 0.2
    test_fraction: float | None = None
    group: str = CASE_ID
    site_aware: Literal["group", "none"] = "none"
    site_column: str = "site"
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"kfold": 2, "montecarlo": 1, "fixed": 1}[self.method]
        if self.num_folds < least or (self.method == "fixed" and self.num_folds > 1):
            expected = "1" if self.method == "fixed" else f"at least {least}"
            raise ConfigError(f"--folds {self.num_folds}: method {self.method} needs {expected}")
        if self.method == "kfold" and self.test_fraction is not None:
            raise ConfigError("--test-fraction: with method kfold the test side is one of the folds; set --folds")
        if not 0 < self.val_fraction < 1 or not 0 <= self.test_share < 1 or self.val_fraction + self.test_share >= 1:
            raise ConfigError(
                f"--val-fraction {self.val_fraction:g} and a test share of {self.test_share:g}: expected val above 0, "
                "test at least 0 and something left for train"
            )

    @property
    def num_folds(self) -> int:
        """Number of folds with the default filled in."""
        return self.folds if self.folds is not None else 1 if self.method == "fixed" else DEFAULT_FOLDS

    @property
    def test_share(self) -> float:
        """Share of all patients on the test side."""
        if self.method == "kfold":
            return 1 / max(self.num_folds, 1)
        return 0.2 if self.test_fraction is None else self.test_fraction

    @property
    def shares(self) -> dict[str, float]:
        """Share of each side; a test side of 0 is left out."""
        shares = {"train": 1 - self.val_fraction - self.test_share, "val": self.val_fraction, "test": self.test_share}
        return {side: share for side, share in shares.items() if share > 0}


def make_splits(cohort: CohortTable, plan: SplitPlan) -> Splits:
    """Deal the labelled slides of a cohort to the sides of every fold.

    Raises:
        CohortError: a column is missing, fewer than two classes, or too few groups to put every class on every side.
    """
    label_of = {slide: label for slide, label in cohort.labels(plan.label).items() if label is not None}
    classes = sorted(set(label_of.values()))
    if len(classes) < 2:
        raise CohortError(f"{cohort.path}: column {plan.label!r}: expected at least two classes, found {classes}")
    group_of = _groups(cohort, label_of, plan)
    case_of = cases_of(cohort)
    counts = {group: np.zeros(len(classes)) for group in sorted(set(group_of.values()))}
    for group, _, label in {(group_of[slide], case_of[slide], label) for slide, label in label_of.items()}:
        counts[group][classes.index(label)] += 1
    needed = plan.num_folds if plan.method == "kfold" else len(plan.shares)
    _require_groups(cohort, plan, counts, classes, max(needed, len(plan.shares)))
    sides = {
        fold: {slide: side_of[group] for slide, group in group_of.items()}
        for fold, side_of in _deal_folds(counts, plan).items()
    }
    for fold, side_of in sides.items():
        _require_classes(cohort, plan, fold, {(side_of[slide], name) for slide, name in label_of.items()}, classes)
    return Splits(sides)


def _groups(cohort: CohortTable, slides: Collection[str], plan: SplitPlan) -> dict[str, str]:
    """Name of each slide's group: the first case of those that are tied together."""
    case_of = cases_of(cohort)
    parent: dict[tuple[str, str], tuple[str, str]] = {}  # of (column, value), up to the root of its group

    def root(node: tuple[str, str]) -> tuple[str, str]:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for column in {CASE_ID, plan.group} | ({plan.site_column} if plan.site_aware == "group" else set()):
        value_of = cohort.labels(column)
        missing = [slide for slide in slides if value_of[slide] is None]
        if missing:
            raise CohortError(
                f"{cohort.path}: column {column!r} has no value for {len(missing)} labelled slides, first "
                f"{missing[0]!r}; fill it, or clear their {plan.label!r}"
            )
        for slide in slides:
            parent[root((CASE_ID, case_of[slide]))] = root((column, str(value_of[slide])))
    names: dict[tuple[str, str], str] = {}
    for slide in slides:
        node = root((CASE_ID, case_of[slide]))
        names[node] = min(names.get(node, case_of[slide]), case_of[slide])
    return {slide: names[root((CASE_ID, case_of[slide]))] for slide in slides}


def _deal_folds(counts: Mapping[str, np.ndarray], plan: SplitPlan) -> dict[int, dict[str, str]]:
    """Side of each group in every fold."""
    if plan.method != "kfold":
        return {fold: _deal(counts, plan.shares, f"{plan.seed}/{fold}") for fold in range(plan.num_folds)}
    test_folds = _deal(counts, {str(fold): 1.0 for fold in range(plan.num_folds)}, f"{plan.seed}/folds")
    shares = {side: share for side, share in plan.shares.items() if side != "test"}
    folds: dict[int, dict[str, str]] = {}
    for fold in range(plan.num_folds):
        rest = {group: count for group, count in counts.items() if test_folds[group] != str(fold)}
        folds[fold] = dict.fromkeys(counts, "test") | _deal(rest, shares, f"{plan.seed}/{fold}")
    return folds


def _deal(counts: Mapping[str, np.ndarray], shares: Mapping[str, float], salt: str) -> dict[str, str]:
    """Deal groups to sides in several orders; keep the result closest to the shares."""
    names = list(shares)
    weights = np.array([shares[name] for name in names])
    total = np.sum(list(counts.values()), axis=0)  # (classes)
    targets = np.maximum(np.outer(weights / weights.sum(), total), 1e-9)  # (sides, classes)
    equal = all(count.sum() == 1 for count in counts.values())  # then every order gives the same numbers
    best: tuple[float, list[int]] | None = None
    groups: list[str] = []
    for attempt in range(NUM_ORDERS):
        order = sorted(counts, key=_shuffled(f"{salt}/{attempt}"))
        dealt, filled = _deal_in_order([counts[group] for group in order], targets)
        # an empty class on a side is worse than any imbalance
        miss = float(np.abs(filled - targets).max()) + 1e6 * float(((filled == 0) & (total > 0)).sum())
        if best is None or miss < best[0] - 1e-9:
            best, groups = (miss, dealt), order
        if miss < 1 or equal:
            break
    assert best is not None
    return {group: names[side] for group, side in zip(groups, best[1], strict=True)}


def _shuffled(salt: str) -> Callable[[str], bytes]:
    return lambda group: hashlib.sha256(f"{salt}/{group}".encode("utf-8", "surrogatepass")).digest()


def _deal_in_order(counts: Sequence[np.ndarray], targets: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Each group goes to the side whose classes are least filled; of equal ones to the side that lacks most patients.

    Args:
        counts: patients by class of each group, in the order of dealing.
        targets: wanted patients by side and class.

    Returns:
        Side of each group, and patients by side and class.
    """
    filled = np.zeros_like(targets)
    dealt: list[int] = []
    for count in counts:
        load = np.round(((filled / targets) * count).sum(axis=1), 9)  # (sides)
        lacking = np.round((targets - filled).sum(axis=1), 9)  # (sides)
        side = int(np.lexsort((-lacking, load))[0])
        filled[side] += count
        dealt.append(side)
    return dealt, filled


def _require_groups(
    cohort: CohortTable, plan: SplitPlan, counts: Mapping[str, np.ndarray], classes: Sequence[str], needed: int
) -> None:
    what = f"sites (column {plan.site_column!r}, tied by cases)" if plan.site_aware == "group" else "patients"
    if plan.site_aware != "group" and plan.group != CASE_ID:
        what = f"groups (column {plan.group!r})"
    for position, name in enumerate(classes):
        found = sum(count[position] > 0 for count in counts.values())
        if found < needed:
            raise CohortError(
                f"{cohort.path}: class {name!r} of column {plan.label!r}: expected at least {needed} {what} to put it "
                f"on every side, found {found}; use fewer folds, join classes, or clear the labels of this class"
            )


def _require_classes(
    cohort: CohortTable, plan: SplitPlan, fold: int, present: Collection[tuple[str, str]], classes: Sequence[str]
) -> None:
    """Refuse a fold in which a (side, class) is not present."""
    for side in plan.shares:
        absent = [name for name in classes if (side, name) not in present]
        if absent:
            raise CohortError(
                f"{cohort.path}: no order of dealing puts class {absent[0]!r} on side {side} of fold {fold}: its "
                "patients are in too few groups, or the side is too small; use fewer folds, a larger share, join "
                "classes, or another --seed"
            )
