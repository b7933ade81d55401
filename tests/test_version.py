"""Where the version comes from: metadata, the source folder's pyproject.toml, or nowhere."""

from __future__ import annotations

import importlib.metadata
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from span_sparse import version as version_module
from span_sparse.version import UNKNOWN, is_installed, package_version, requirements

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    version_module._project.cache_clear()
    yield
    version_module._project.cache_clear()


@pytest.fixture
def uninstalled(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.Distribution.from_name

    def hidden(name: str) -> importlib.metadata.Distribution:
        if name == "span-sparse":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", hidden)


def test_metadata_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9")
    assert package_version() == "9.9"


@pytest.mark.usefixtures("uninstalled")
def test_a_source_folder_says_it_itself() -> None:
    assert not is_installed()
    assert package_version() == PROJECT["version"]
    assert set(PROJECT["dependencies"]) < set(requirements())
    assert set(PROJECT["optional-dependencies"]["encoders"]) < set(requirements())
    assert package_version("numpy") == importlib.metadata.version("numpy")
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        package_version("no-such-distribution")


@pytest.mark.usefixtures("uninstalled")
@pytest.mark.parametrize("content", [None, "[project]\nname = 'another'\nversion = '3'\n", "not toml", "[tool]\n"])
def test_the_file_of_another_project_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "pyproject.toml").write_text(content, encoding="utf-8")
    monkeypatch.setattr(version_module, "__file__", str(tmp_path / "span_sparse" / "version.py"))
    assert package_version() == UNKNOWN
    assert requirements() == []
