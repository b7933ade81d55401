"""What is a model for? The columns or annotations it is trained on, and the features it reads.

A task is written by the user, who names columns and classes (`SurvivalTask("time", "event")`). The data module checks
it against the table (`targets.py`), completes it and binds it to the features of the store (`Task.on`). A bound task is
saved in every checkpoint, so that evaluation needs nothing else and refuses features of another encoder or lattice.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from span_sparse.datasets.batch import NO_LABEL
from span_sparse.errors import CheckpointError, ConfigError
from span_sparse.grid import LatticeSpec
from span_sparse.types import EncoderIdentity

TaskT = TypeVar("TaskT", bound="Task")  # not `Self`, which beartype 0.23 refuses on the methods that the tests check


class FeatureKind(NamedTuple):
    """Which features.

    Attributes:
        encoder: identity of the encoder that made them.
        lattice: patch size and resolution.
    """

    encoder: EncoderIdentity
    lattice: LatticeSpec


@dataclass(frozen=True, slots=True)
class Task:
    """Base of the tasks below.

    Attributes:
        features: the features a model for this task reads; None until `on` binds it.
    """

    kind: ClassVar[str] = ""
    features: FeatureKind | None = field(default=None, init=False)

    @property
    def target_names(self) -> tuple[str, ...]:
        """What the columns of `SlideBatch.targets` are; empty when the task has none."""
        return ()

    @property
    def encoder(self) -> EncoderIdentity:
        """Identity of the encoder that made the features."""
        assert self.features is not None, "the task is not bound to features"
        return self.features.encoder

    @property
    def lattice(self) -> LatticeSpec:
        """Patch size and resolution."""
        assert self.features is not None, "the task is not bound to features"
        return self.features.lattice

    @property
    def num_features(self) -> int:
        """Width of the patch features."""
        return self.encoder.dimension

    def check(self) -> None:
        """Refuses settings that cannot be meant; the data module calls it.

        Not in the constructor: jsonargparse 4.53 hides what a constructor raises behind the alternatives it tries next.

        Raises:
            ConfigError: names the setting.
        """

    def on(self: TaskT, encoder: EncoderIdentity, lattice: LatticeSpec) -> TaskT:
        """The same task bound to features."""
        bound = copy.copy(self)
        object.__setattr__(bound, "features", FeatureKind(encoder, lattice))
        return bound

    def as_dict(self) -> dict[str, Any]:
        """A bound task as plain values, for checkpoints."""
        settings = {one.name: getattr(self, one.name) for one in fields(self) if one.init}
        return {
            "kind": self.kind,
            **{name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()},
            "encoder": self.encoder.as_dict(),
            "lattice": self.lattice.as_dict(),
        }

    @classmethod
    def from_dict(cls: type[TaskT], values: dict[str, Any]) -> TaskT:
        """Inverse of `as_dict`; `Task.from_dict` restores a task of any kind, that of a subclass only its own.

        Raises:
            CheckpointError: another kind, or something is missing or of the wrong type.
        """
        kind = values.get("kind", ClassificationTask.kind)  # the first checkpoints did not say it
        found = _KINDS.get(kind) if isinstance(kind, str) else None
        if found is None or not issubclass(found, cls):
            wanted = cls.kind or f"one of {', '.join(_KINDS)}"
            raise CheckpointError(f"the checkpoint's task is {kind!r}, expected {wanted}")
        defaults = {} if "kind" in values else {"column": "label"}
        try:
            settings: dict[str, Any] = {one.name: (defaults | values)[one.name] for one in fields(found) if one.init}
            for name, value in settings.items():
                settings[name] = tuple(str(part) for part in value) if isinstance(value, list) else value
            task = found(**settings)
            task.check()
            return task.on(EncoderIdentity.from_dict(values["encoder"]), LatticeSpec.from_dict(values["lattice"]))
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise CheckpointError(f"the checkpoint's task is incomplete: {type(error).__name__} {error}") from error

    def check_features(self, encoder: EncoderIdentity, lattice: LatticeSpec, where: str) -> None:
        """Refuses features this task's model was not trained on.

        Args:
            encoder: identity of the encoder of the features at hand.
            lattice: their patch size and resolution.
            where: the store, for the message.

        Raises:
            CheckpointError: names every field that differs.
        """
        differences = [f"encoder {line}" for line in self.encoder.differences(encoder)]
        for key, ours in self.lattice.as_dict().items():
            theirs = lattice.as_dict()[key]
            if ours != theirs:
                differences.append(f"lattice {key}: {ours!r} != {theirs!r}")
        if differences:
            raise CheckpointError(
                f"{where}: its features do not match the checkpoint (checkpoint != store): {'; '.join(differences)}. "
                "Extract the slides again with the checkpoint's encoder and lattice"
            )


@dataclass(frozen=True, slots=True)
class ClassificationTask(Task):
    """One class per slide, in `SlideBatch.labels`.

    Attributes:
        column: column of the class names.
        class_names: in the order of the logits, the last one is the positive class of a binary task; empty means the
            sorted names of the training slides.
    """

    kind: ClassVar[str] = "classification"
    column: str = "label"
    class_names: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return len(self.class_names)


@dataclass(frozen=True, slots=True)
class MultiLabelTask(Task):
    """Several independent yes-or-no questions per slide, in `SlideBatch.targets` as 0 or 1, NaN where unanswered.

    Attributes:
        columns: one per question, holding 0 and 1 (or false and true).
    """

    kind: ClassVar[str] = "multi_label"
    columns: tuple[str, ...]

    @property
    def target_names(self) -> tuple[str, ...]:
        """The columns."""
        return self.columns

    def check(self) -> None:
        """See `Task.check`."""
        _check_names("columns", self.columns)


@dataclass(frozen=True, slots=True)
class RegressionTask(Task):
    """A number per slide, in `SlideBatch.targets`.

    Attributes:
        column: column of the number.
    """

    kind: ClassVar[str] = "regression"
    column: str

    @property
    def target_names(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)


@dataclass(frozen=True, slots=True)
class SurvivalTask(Task):
    """Time to an event or to the end of the follow-up, in `SlideBatch.targets` as (time, event).

    Attributes:
        time_column: column of the time, a number of at least 0 in any unit.
        event_column: column that is 1 where the event was seen and 0 where the case was censored.
    """

    kind: ClassVar[str] = "survival"
    time_column: str = "time"
    event_column: str = "event"

    @property
    def target_names(self) -> tuple[str, ...]:
        """Time, then event."""
        return (self.time_column, self.event_column)

    def check(self) -> None:
        """See `Task.check`."""
        _check_names("time_column and event_column", self.target_names)


@dataclass(frozen=True, slots=True)
class SegmentationTask(Task):
    """One class per patch, from the annotations that `span annotate` stores, in `SlideBatch.patch_labels`.

    A patch belongs to the class that covers most of it, if that is at least `threshold`; else to the background.

    Attributes:
        classes: annotation classes of the store, in the order of the logits after the background.
        threshold: least share of a patch's area, in (0, 1].
        background: name of class 0, the patches that no class covers enough; None gives these patches no label, for
            slides that are annotated only in part, and class 0 is the first of `classes`.
    """

    kind: ClassVar[str] = "segmentation"
    classes: tuple[str, ...]
    threshold: float = 0.5
    background: str | None = "background"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the values of `SlideBatch.patch_labels`."""
        return self.classes if self.background is None else (self.background, *self.classes)

    @property
    def num_classes(self) -> int:
        """Number of different patch labels."""
        return len(self.class_names)

    def check(self) -> None:
        """See `Task.check`."""
        _check_names("classes and background", self.class_names)
        if not self.classes or self.num_classes < 2:
            raise ConfigError(f"segmentation: {list(self.class_names)} are not two classes or more; name more classes")
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"segmentation: threshold is {self.threshold}, expected a share of the area in (0, 1]")

    def patch_labels(self, ratios: Float[Tensor, "patches ratio_classes"]) -> Int64[Tensor, " patches"]:
        """Class index of every patch; `NO_LABEL` where the ratios are NaN or, without a background, too small.

        Args:
            ratios: of `classes`, in their order.

        >>> task = SegmentationTask(("tumor", "stroma"))
        >>> task.patch_labels(torch.tensor([[0.2, 0.3], [0.6, 0.4], [0.1, 0.5], [torch.nan, torch.nan]])).tolist()
        [0, 1, 2, -1]
        """
        largest, winner = ratios.max(dim=1)
        below, shift = (NO_LABEL, 0) if self.background is None else (0, 1)
        labels = torch.where(largest >= self.threshold, winner + shift, below)
        return torch.where(largest.isnan(), NO_LABEL, labels)


AnyTask = ClassificationTask | MultiLabelTask | RegressionTask | SurvivalTask | SegmentationTask
"""What a data module takes; a union of data classes, from which a configuration chooses by `class_path`."""

_KINDS: dict[str, type[AnyTask]] = {
    task.kind: task for task in (ClassificationTask, MultiLabelTask, RegressionTask, SurvivalTask, SegmentationTask)
}


def _check_names(setting: str, names: tuple[str, ...]) -> None:
    if not names or not all(names) or len(set(names)) < len(names):
        raise ConfigError(f"the task's {setting} must be different names, at least one, found {list(names)}")
