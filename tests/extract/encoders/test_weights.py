from __future__ import annotations

import hashlib
import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from span_sparse.errors import ConfigError
from span_sparse.extract.encoders.catalogue import SPECS
from span_sparse.extract.encoders.weights import (
    WeightsFile,
    cast_once,
    check_against_config,
    load_network,
    read_tensors,
)


def lines_of(caught) -> list[str]:
    return str(caught.value).splitlines()


def test_a_file_is_named_by_its_content(tmp_path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"weights")
    file = WeightsFile.of(path)
    assert file.sha256 == hashlib.sha256(b"weights").hexdigest()
    assert pickle.loads(pickle.dumps(file)) == file
    file.check_unchanged()
    path.write_bytes(b"other weights")
    with pytest.raises(ConfigError, match="changed while they were in use"):
        file.check_unchanged()
    path.unlink()
    with pytest.raises(ConfigError, match="changed while they were in use"):
        file.check_unchanged()
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        WeightsFile.of(path)


@pytest.mark.parametrize("name", ["uni_v1", "virchow2", "phikon_v2", "ctranspath", "resnet50"])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_saved_weights_are_loaded_exactly(name: str, suffix: str, small, random_weights, tmp_path) -> None:
    spec = small(name)
    network = random_weights(spec)
    path = tmp_path / f"w{suffix}"
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, path)
    loaded = load_network(spec, path)
    assert not loaded.training
    inputs = torch.randn(2, 3, spec.transform.crop_px, spec.transform.crop_px)
    with torch.inference_mode():
        assert torch.equal(spec.read(loaded, inputs), spec.read(network, inputs))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_weights_of_an_old_torch(small, random_weights, tmp_path) -> None:
    spec = small("uni_v1")
    state = random_weights(spec).state_dict()
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    found = load_network(spec, tmp_path / "w.pth").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_half_precision_weights_become_float32(small, random_weights, tmp_path) -> None:
    spec = small("uni_v1")
    save_file(
        {key: value.half() for key, value in random_weights(spec).state_dict().items()}, tmp_path / "w.safetensors"
    )
    assert {value.dtype for value in load_network(spec, tmp_path / "w.safetensors").state_dict().values()} == {
        torch.float32
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("norm.weight"), "no norm.weight$"),
        (lambda state: state.update(extra=torch.zeros(1)), "extra is not of this network$"),
        (lambda state: state.update({"norm.bias": torch.zeros(5)}), r"norm.bias is \[5\], expected \[24\]$"),
        (lambda state: (state.pop("norm.weight"), state.pop("norm.bias")), "and 1 more differences$"),
    ],
)
def test_other_weights_are_refused(change, message: str, small, random_weights, tmp_path) -> None:
    spec = small("uni_v1")
    state = random_weights(spec).state_dict()
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(
        ConfigError, match=rf"not the weights of uni_v1 \(https://huggingface.co/MahmoodLab/UNI\): .*{message}"
    ):
        load_network(spec, tmp_path / "w.safetensors")


def test_half_a_dinov2_is_refused(small, tmp_path) -> None:
    name = "encoder.layer.0.attention.attention"
    save_file({f"{name}.query.weight": torch.zeros(24, 24)}, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=f"not the weights of phikon_v2 .*: no {name}.key.weight$"):
        load_network(small("phikon_v2"), tmp_path / "w.safetensors")


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["BOMB"],)


def test_pickles_that_run_code_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    torch.save({"w": Bomb()}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="holds more than tensors, which would run code"):
        read_tensors(tmp_path / "w.pth")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt", ".pth"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04" + b"\0" * 60, b"\xff" * 64, b"\0" * 1000])
def test_damaged_files_are_one_line(suffix: str, content: bytes, tmp_path) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_tensors(path)
    assert str(caught.value).startswith(str(path))
    assert len(lines_of(caught)) == 1


@pytest.mark.parametrize("content", [{}, {"a": 1}, [torch.zeros(1)], torch.zeros(2), {"model": {"a": "text"}}])
def test_files_without_named_tensors_are_refused(content, tmp_path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="expected named tensors"):
        read_tensors(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("file", "content", "key"),
    [
        ("config.json", {"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.229, 0.224, 0.225]}}, "mean"),
        ("preprocessor_config.json", {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.5, 0.5, 0.5]}, "std"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 256}}, "resize_px 256, .* uses 224"),
    ],
)
def test_a_contradicting_configuration_is_refused(file: str, content, key: str, tmp_path) -> None:
    spec = SPECS["phikon_v2"]
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=f"its configuration says {key}"):
        check_against_config(spec, tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[1, 2]",
        "{not json",
        '{"pretrained_cfg": []}',
        '{"pretrained_cfg": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}',
        "[" * 100_000,
        " " * (2**20 + 1),
    ],
)
def test_other_configurations_are_no_obstacle(content: str, tmp_path) -> None:
    (tmp_path / "config.json").write_text(content)
    check_against_config(SPECS["uni_v1"], tmp_path)


@pytest.mark.parametrize("name", ["uni_v1", "virchow2", "conch_v1", "ctranspath", "resnet50"])
def test_weights_cast_once_give_the_vectors_of_weights_cast_at_every_call(name, small, random_weights, patches) -> None:
    spec = small(name)
    network = random_weights(spec).requires_grad_(False)
    inputs = spec.transform(torch.from_numpy(patches(3, spec.input_size_px)))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = spec.read(network, inputs)
        found = spec.read(cast_once(network, torch.bfloat16), inputs)
    assert any(weight.dtype == torch.bfloat16 for weight in network.parameters())
    assert torch.equal(found, expected)
