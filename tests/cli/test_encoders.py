from __future__ import annotations

import pytest

from span_sparse.cli.encoders import build_parser, run
from span_sparse.errors import ConfigError
from span_sparse.extract.encoders.catalogue import SPECS


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """An empty cache of weights, a wide terminal, and every library."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setenv("COLUMNS", "400")
    return tmp_path


def call(*words: str) -> int:
    return run(build_parser().parse_args(list(words)))


def test_the_list_has_every_name_with_its_numbers(capsys) -> None:
    assert call() == 0
    shown = capsys.readouterr().out
    rows = {
        line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")]
        for line in shown.splitlines()
        if "│" in line
    }
    assert set(SPECS) | {"stain-texture"} <= set(rows)
    assert rows["virchow2"][2:9] == ["2560", "cls+mean", "224", "0.5", "gated", "CC-BY-NC-ND-4.0", "weights missing"]
    assert rows["virchow2-cls"][2:4] == ["1280", "cls"]
    assert rows["resnet50"][6] == "open"
    assert rows["stain-texture"][2:9] == ["128", "descriptor", "224", "0.5", "none", "Apache-2.0", "yes"]
    assert call("list") == 0


def test_weights_in_the_cache_are_usable(cache, capsys) -> None:
    folder = cache / "models--owkin--phikon-v2"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "model.safetensors").write_bytes(b"x")
    call("show", "phikon_v2")
    shown = capsys.readouterr().out
    assert f"usable here  yes: {folder}" in shown
    assert "step" not in shown


def test_a_missing_library_is_named(monkeypatch, capsys) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "timm" else object())
    call("show", "uni_v1")
    assert "usable here  no: pip install 'span-sparse[encoders]' (timm missing)" in capsys.readouterr().out


@pytest.mark.parametrize("name", SPECS)
def test_showing_a_network(name: str, capsys) -> None:
    assert call("show", name) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:11].strip(): line[13:] for line in lines}
    spec = SPECS[name]
    assert rows["vector"].startswith(f"{spec.dimension} numbers, {spec.readout}")
    assert rows["patches"].startswith(f"{spec.input_size_px} px at {spec.mpp:g} µm/px")
    assert str(spec.transform.mean) in rows["transform"]
    assert rows["source"] == spec.source
    assert rows["step 1"].startswith(("ask for access at https://", "read the terms at https://"))
    assert "download" in rows["step 2"]
    assert f"--encoder {name} --encoder-weights FOLDER" in rows["step 3"]


def test_showing_the_descriptor(capsys) -> None:
    call("show", "stain-texture")
    shown = capsys.readouterr().out
    assert "dimension      128" in shown
    assert "usable here    yes" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show"], "name an encoder; `span encoders` lists them"),
        (["list", "uni_v1"], "did you mean `span encoders show uni_v1`"),
        (["show", "uni_v3"], "^uni_v3: there is no encoder of this name; did you mean uni_v"),
    ],
)
def test_wrong_words_are_one_line(words, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call(*words)


def test_plug_ins_are_listed_and_shown(monkeypatch, capsys) -> None:
    from importlib.metadata import EntryPoint

    from span_sparse.extract.encoders import plugins

    group = "span_sparse.encoders"
    entry = EntryPoint("own", "span_sparse.extract.stain_texture:StainTextureEncoder", group)
    monkeypatch.setattr(plugins, "plugins", lambda: {"own": entry, "uni_v1": EntryPoint("uni_v1", "a:b", group)})
    call()
    shown = capsys.readouterr().out
    assert "plug-in" in shown
    assert "hidden by the encoder uni_v1 above" in shown
    with pytest.raises(ConfigError, match=r"encoder own of the distribution .*: TypeError"):
        call("show", "own")
