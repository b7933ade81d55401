"""Which units, names and axis words does the package use?

Units are part of every name that carries a physical quantity: `_um` micrometres, `_mpp` micrometres per pixel, `_px0`
pixels of the slide's level 0, `_tile_px` pixels of an encoder's input. Grid indices are `(row, col)`, pixels `(x, y)`,
intervals half-open.

Axis words of tensor annotations (`Float[Tensor, "tokens channels"]`):

=============  =====================================================================================
`tokens`       rows of all slides of a batch at one pyramid level, ordered by (slide, row, col)
`patches`      rows of one slide in the store (a token of level 0 is a patch)
`slides`       slides of a batch
`globals`      global tokens of one slide; `[slides, globals, channels]`
`channels`     width of a feature vector
`heads`        attention heads; `head_channels` their width
`cells`        non-empty `w × w` cells of a level
`slots`        positions inside a cell, `w²`, row-major
`taps`         positions of a convolution kernel, row-major
`outputs`      rows a kernel map writes
`classes`      classes of the task
=============  =====================================================================================
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, NewType

Mpp = NewType("Mpp", float)
"""Micrometres per pixel."""

Px0 = NewType("Px0", int)
"""A length in pixels of the slide's level 0."""


@dataclass(frozen=True, slots=True)
class EncoderIdentity:
    """Everything that decides which vector an encoder gives for a patch of tissue.

    The same name can mean another vector (Virchow2 is 2560-d CLS+mean in one system, 1280-d CLS in another), so a
    checkpoint compares all of it.

    Attributes:
        name: the name people type, for example `stain-texture` or `uni_v2`.
        revision: version of the weights or of the algorithm.
        readout: how the vector is read, for example `cls`, `cls+mean`, `descriptor`.
        dimension: length of the vector.
        input_size_px: edge of the square input, in pixels.
        mpp: micrometres per pixel of the input.
        precision: dtype in which the vector is stored, `float16` or `float32`.
    """

    name: str
    revision: str
    readout: str
    dimension: int
    input_size_px: int
    mpp: float
    precision: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for attributes of a store and for checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncoderIdentity:
        """Inverse of `as_dict`; unknown keys are ignored, missing ones raise `KeyError`."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    def differences(self, other: EncoderIdentity) -> list[str]:
        """The fields in which two identities differ, as `name: ours != theirs`, empty when they are the same.

        >>> uni = EncoderIdentity("uni_v1", "1", "cls", 1024, 224, 0.5, "float16")
        >>> uni.differences(EncoderIdentity("uni_v1", "1", "cls", 1024, 224, 0.25, "float16"))
        ['mpp: 0.5 != 0.25']
        """
        mine, theirs = asdict(self), asdict(other)
        return [f"{key}: {mine[key]!r} != {theirs[key]!r}" for key in mine if mine[key] != theirs[key]]
