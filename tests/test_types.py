from __future__ import annotations

import dataclasses

import pytest

from span_sparse.types import EncoderIdentity

IDENTITY = EncoderIdentity("uni_v1", "rev-3", "cls", 1024, 224, 0.5, "float16")


def test_identity_is_plain_values_and_back():
    values = IDENTITY.as_dict()
    assert values == {
        "name": "uni_v1",
        "revision": "rev-3",
        "readout": "cls",
        "dimension": 1024,
        "input_size_px": 224,
        "mpp": 0.5,
        "precision": "float16",
    }
    assert EncoderIdentity.from_dict(values | {"unknown": 1}) == IDENTITY
    with pytest.raises(KeyError, match="readout"):
        EncoderIdentity.from_dict({key: value for key, value in values.items() if key != "readout"})


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("name", "uni_v2"),
        ("revision", "rev-4"),
        ("readout", "cls+mean"),
        ("dimension", 1536),
        ("input_size_px", 256),
        ("mpp", 0.25),
        ("precision", "float32"),
    ],
)
def test_every_field_counts(field, other):
    changed = dataclasses.replace(IDENTITY, **{field: other})
    assert IDENTITY.differences(changed) == [f"{field}: {getattr(IDENTITY, field)!r} != {other!r}"]
    assert changed != IDENTITY


def test_no_differences_with_itself_and_frozen():
    assert IDENTITY.differences(EncoderIdentity.from_dict(IDENTITY.as_dict())) == []
    with pytest.raises(dataclasses.FrozenInstanceError):
        IDENTITY.name = "x"  # type: ignore[misc]
