from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from span_sparse.errors import ConfigError
from span_sparse.extract.encoders import load_encoder

VALUES = {
    "name": "own",
    "readout": "mean",
    "dimension": 3,
    "input_size_px": 16,
    "mpp": 0.5,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}


class Colour(torch.nn.Module):
    """The mean of each channel, times two."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.full((3,), 2.0))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.mean(dim=(2, 3)) * self.gain


def write_program(path: Path, batch_size: int | None = None, edge: int = 16) -> Path:
    example = torch.zeros(batch_size or 2, 3, edge, edge)
    if path.suffix == ".pt2":
        shapes = None if batch_size else ({0: torch.export.Dim.AUTO},)
        torch.export.save(torch.export.export(Colour().eval(), (example,), dynamic_shapes=shapes), path)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.script(Colour().eval()).save(path)
    return path


def describe(program: Path, **changes) -> Path:
    path = program.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({key: value for key, value in (VALUES | changes).items() if value is not ...}))
    return path


@pytest.fixture(params=[".pt2", ".ts"])
def program(request, tmp_path) -> Path:
    path = write_program(tmp_path / f"own{request.param}")
    describe(path)
    return path


def test_a_program_is_an_encoder(program, patches) -> None:
    made = load_encoder(str(program), trust_program=True)
    identity = made.identity.as_dict()
    assert identity.pop("revision").startswith("sha256:")
    assert identity == {
        "name": "own", "readout": "mean", "dimension": 3, "input_size_px": 16, "mpp": 0.5, "precision": "float32",
    }  # fmt: skip
    batch = patches(11, 16)
    expected = 2 * (batch.reshape(11, -1, 3).mean(axis=1) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(made(batch), expected, atol=1e-5)
    copy = pickle.loads(pickle.dumps(made))
    assert copy(batch).tobytes() == made(batch).tobytes()


def test_a_program_is_not_loaded_without_trust(program, monkeypatch) -> None:
    for loader in ("torch.export.load", "torch.jit.load"):
        monkeypatch.setattr(loader, lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match=r"can run code of whoever wrote it; if you trust them, add --trust-program"):
        load_encoder(str(program))


def test_every_part_of_the_description_that_decides_the_vector_is_in_the_revision(program) -> None:
    def revision(**changes) -> str:
        describe(program, **changes)
        return load_encoder(str(program), trust_program=True).identity.revision

    first = revision()
    assert revision() == first
    assert revision(name="other") == first  # another field of the identity
    changed = [
        revision(mean=[0.5, 0.5, 0.4]),
        revision(std=[0.5, 0.5, 0.4]),
        revision(resize_px=8),
        revision(resize_px=8, interpolation="bilinear"),
        revision(crop_px=12),
    ]
    assert len({first, *changed}) == 6
    program.write_bytes(program.read_bytes() + b"\0")
    assert revision() != first


def test_patches_are_resized_as_described(program, patches) -> None:
    describe(program, input_size_px=40, resize_px=16, crop_px=16)
    batch = patches(2, 40)
    made = load_encoder(str(program), trust_program=True)
    assert made.identity.input_size_px == 40
    mean = batch.reshape(2, -1, 3).mean(axis=1) / 255
    np.testing.assert_allclose(made(batch), 4 * mean - 2, atol=0.02)
    other = load_encoder(str(program), trust_program=True, input_size_px=80, mpp=0.25, precision="float16").identity
    assert (other.input_size_px, other.mpp, other.precision) == (80, 0.25, "float16")


def test_a_program_of_one_batch_size(tmp_path, patches) -> None:
    path = write_program(tmp_path / "own.pt2", batch_size=4)
    describe(path)
    with pytest.raises(ConfigError, match=r"the program fails on float32 .*give batch_size in its description"):
        load_encoder(str(path), trust_program=True)(patches(5, 16))
    describe(path, batch_size=4)
    assert load_encoder(str(path), trust_program=True)(patches(5, 16)).shape == (5, 3)


def test_the_description_may_be_json(program) -> None:
    program.with_suffix(".yaml").unlink()
    with pytest.raises(ConfigError, match=r"no description beside it; write own.yaml with name, readout, dimension"):
        load_encoder(str(program), trust_program=True)
    program.with_suffix(".json").write_text(json.dumps(VALUES))
    assert load_encoder(str(program), trust_program=True).identity.name == "own"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimension": ...}, "dimension missing"),
        ({"colour": 1}, "unknown colour; expected some of name, readout"),
        ({"dimension": 0}, "dimension: expected a whole number from 1 to 65536, found 0"),
        ({"dimension": 2**40}, "dimension: expected a whole number"),
        ({"dimension": True}, "dimension: expected a whole number"),
        ({"input_size_px": None}, "input_size_px: expected a whole number"),
        ({"mpp": -1}, "mpp: expected a number above 0"),
        ({"mpp": float("nan")}, "mpp: expected a number above 0"),
        ({"mean": [1, 2]}, "mean: expected three numbers, found"),
        ({"std": [1, 0, 1]}, "std: expected three numbers, above 0, found"),
        ({"std": ["a", "b", "c"]}, "std: expected three numbers"),
        ({"name": ""}, "name: expected a short text"),
        ({"name": "a\nb"}, "name: expected a short text"),
        ({"interpolation": "nearest"}, "interpolation: expected bilinear or bicubic, found 'nearest'"),
        ({"crop_px": 20}, "patches of 16 px are too small"),
    ],
)
def test_wrong_descriptions_are_refused(changes, message: str, tmp_path) -> None:
    path = tmp_path / "own.ts"
    path.write_bytes(b"never loaded")
    describe(path, **changes)
    with pytest.raises(ConfigError, match=message):
        load_encoder(str(path), trust_program=True)


@pytest.mark.parametrize(
    "text", ["", "- a\n", "{", "a: [1", "\x00", "!!python/object/apply:os.mkdir [x]", "x" * 70_000]
)
def test_descriptions_that_are_none_are_one_line(text: str, tmp_path) -> None:
    path = tmp_path / "own.pt2"
    path.write_bytes(b"never loaded")
    path.with_suffix(".yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_encoder(str(path), trust_program=True)
    assert str(path.with_suffix(".yaml")) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pt2", ".ts"])
def test_damaged_programs_are_one_line(suffix: str, tmp_path, patches) -> None:
    path = tmp_path / f"own{suffix}"
    path.write_bytes(b"PK\x03\x04 not a program")
    describe(path)
    made = load_encoder(str(path), trust_program=True)
    with pytest.raises(ConfigError, match="cannot be loaded as a program") as caught:
        made(patches(1, 16))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "bfloat16"}, "--precision bfloat16: a program's vectors are stored as float32 or float16"),
        ({"precision": "int8"}, "--precision int8"),
        ({"weights": Path("w.bin")}, "--encoder-weights w.bin: the program .* has its own"),
        ({"device": "tpu"}, "--device tpu"),
    ],
)
def test_settings_that_do_not_fit_a_program(settings, message: str, program) -> None:
    with pytest.raises(ConfigError, match=message):
        load_encoder(str(program), trust_program=True, **settings)


def test_an_absent_program(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no such program"):
        load_encoder(str(tmp_path / "absent.pt2"), trust_program=True)
