"""`python -m span_sparse ...` is `span ...`, also where another program's script comes first on the PATH."""

from __future__ import annotations

from span_sparse.cli.main import span

if __name__ == "__main__":
    span()
