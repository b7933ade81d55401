from __future__ import annotations

import sys

import pytest

from span_sparse.cli import main


@pytest.fixture
def command(monkeypatch):
    """Runs `span ...` or `lightning ...` in this process; returns the exit code."""

    def run(name: str, *words: object) -> int:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            getattr(main, name)()
        return caught.value.code

    return run
