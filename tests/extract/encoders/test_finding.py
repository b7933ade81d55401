from __future__ import annotations

import sys

import pytest

from span_sparse.errors import ConfigError
from span_sparse.extract.encoders.catalogue import SPECS
from span_sparse.extract.encoders.finding import find_weights


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    """An empty cache, and any connection is a failure."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was made"))


def lines_of(caught) -> list[str]:
    return str(caught.value).splitlines()


@pytest.mark.parametrize("name", SPECS)
def test_missing_weights_are_three_lines(name: str) -> None:
    spec = SPECS[name]
    with pytest.raises(ConfigError) as caught:
        find_weights(spec, None)
    ask, fetch, pass_on = lines_of(caught)
    assert ask.startswith(f"{name}: no weights here. 1. ")
    assert spec.source in ask
    assert spec.licence in ask
    assert ("ask for access" in ask) == spec.gated
    assert ("hf auth login" in fetch) == spec.gated
    if spec.repository:
        assert f"hf download {spec.repository} {spec.files[0]} --local-dir {name}" in fetch
    assert f"--encoder {name} --encoder-weights" in pass_on


def test_weights_in_the_cache_are_found_without_a_connection(tmp_path) -> None:
    spec = SPECS["virchow2"]
    folder = tmp_path / "cache" / "models--paige-ai--Virchow2"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "pytorch_model.bin").write_bytes(b"x")
    assert find_weights(spec, None) == folder / "snapshots" / "abc" / "pytorch_model.bin"
    (folder / "snapshots" / "abc" / "model.safetensors").write_bytes(b"x")
    assert find_weights(spec, None).name == "model.safetensors"


def test_a_given_folder(tmp_path) -> None:
    spec = SPECS["gigapath"]
    with pytest.raises(ConfigError) as caught:
        find_weights(spec, tmp_path)
    assert "expected pytorch_model.bin or model.safetensors" in lines_of(caught)[0]
    assert len(lines_of(caught)) == 3
    (tmp_path / "slide_encoder.pth").write_bytes(b"")
    assert find_weights(spec, tmp_path).name == "slide_encoder.pth"  # the only one
    (tmp_path / "other.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"2 weights files \(other.bin, slide_encoder.pth, ...\), expected .*; name"):
        find_weights(spec, tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert find_weights(spec, tmp_path).name == "pytorch_model.bin"


def test_a_given_file(tmp_path) -> None:
    spec = SPECS["uni_v1"]
    (tmp_path / "uni.txt").write_text("")
    with pytest.raises(ConfigError, match=r"expected a weights file, one of \*.safetensors, \*.bin"):
        find_weights(spec, tmp_path / "uni.txt")
    with pytest.raises(ConfigError) as caught:
        find_weights(spec, tmp_path / "absent")
    assert f"no file or folder {tmp_path / 'absent'}" in lines_of(caught)[0]
    assert len(lines_of(caught)) == 3


def test_downloads_only_when_asked(monkeypatch, tmp_path) -> None:
    import huggingface_hub

    asked = []

    def download(repository: str, name: str) -> str:
        asked.append((repository, name))
        if name == "model.safetensors":
            raise huggingface_hub.errors.EntryNotFoundError("404")
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(ConfigError):
        find_weights(SPECS["hoptimus1"], None)
    assert not asked
    assert find_weights(SPECS["hoptimus1"], None, allow_download=True) == tmp_path / "pytorch_model.bin"
    assert asked == [("bioptimus/H-optimus-1", "model.safetensors"), ("bioptimus/H-optimus-1", "pytorch_model.bin")]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("GatedRepoError", "403 Client Error"),
        ("LocalEntryNotFoundError", "An error happened while trying to locate the file"),
        ("RemoteEntryNotFoundError", None),
        (None, "no route to host"),
    ],
)
def test_a_failed_download_is_three_lines(monkeypatch, error: str | None, reason: str | None) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    def download(repository: str, name: str) -> str:
        if error is None:
            raise OSError("no route to host")
        text = f"{reason}.\nsecond line"
        # constructors differ between releases of the library
        raise type(error, (getattr(errors, error),), {"__init__": lambda self: None, "__str__": lambda self: text})()

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(ConfigError) as caught:
        find_weights(SPECS["uni_v2"], None, allow_download=True)
    ask, *rest = lines_of(caught)
    assert len(rest) == 2
    what = f"the download failed ({reason})" if reason else "MahmoodLab/UNI2-h holds none of pytorch_model.bin, "
    assert ask.startswith(f"uni_v2: {what}")
    assert "1. ask for access at https://" in ask


def test_a_missing_hub_library_is_one_line(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"needs huggingface_hub .*pip install 'span-sparse\[encoders\]'"):
        find_weights(SPECS["uni_v1"], None)
