"""Version of this package, installed or run from a source folder.

`importlib.metadata` knows what is installed. A source folder that only lies on the path has no metadata; there the
version and the requirements are those of the `pyproject.toml` beside the package.
"""

from __future__ import annotations

import importlib.metadata
import tomllib
from functools import cache
from pathlib import Path
from typing import Any, Final

NAME: Final = "span-sparse"
UNKNOWN: Final = "unknown"


def package_version(name: str = NAME) -> str:
    """The version of a distribution; of this one `unknown` where neither metadata nor a `pyproject.toml` says it.

    Raises:
        PackageNotFoundError: another distribution that is not installed.
    """
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if name != NAME:
            raise
        return str(_project().get("version", UNKNOWN))


def is_installed() -> bool:
    """Whether Python's metadata knows the package."""
    try:
        importlib.metadata.version(NAME)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def requirements() -> list[str]:
    """What the package asks for, extras included, as lines such as `numpy>=1.26; python_version >= '3.12'`."""
    try:
        return importlib.metadata.requires(NAME) or []
    except importlib.metadata.PackageNotFoundError:
        project = _project()
        extras = project.get("optional-dependencies", {})
        return [*project.get("dependencies", []), *(line for lines in extras.values() for line in lines)]


@cache
def _project() -> dict[str, Any]:
    """The table `project` of the source folder; empty where there is none, or it is another project's."""
    try:
        content = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return {}
    project = content.get("project", {})
    return project if project.get("name") == NAME else {}
