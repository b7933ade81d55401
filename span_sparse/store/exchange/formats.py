"""Which formats are there, and which of them is this folder?"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from span_sparse.errors import ExchangeError
from span_sparse.store.exchange.atlaspatch import ATLASPATCH
from span_sparse.store.exchange.clam import CLAM
from span_sparse.store.exchange.histossl import HISTOSSL
from span_sparse.store.exchange.layout import Format
from span_sparse.store.exchange.lazyslide import LAZYSLIDE
from span_sparse.store.exchange.slide2vec import SLIDE2VEC
from span_sparse.store.exchange.slideflow import SLIDEFLOW
from span_sparse.store.exchange.span_h5 import PATCHPREPROCESS, SPAN, SPAN_ST
from span_sparse.store.exchange.stamp import STAMP
from span_sparse.store.exchange.trident import TRIDENT

FORMATS: Final[tuple[Format, ...]] = (
    TRIDENT, CLAM, SPAN, PATCHPREPROCESS, SPAN_ST, STAMP, SLIDEFLOW, LAZYSLIDE, ATLASPATCH, SLIDE2VEC, HISTOSSL,
)  # fmt: skip

FORMAT_NAMES: Final = tuple(one.name for one in FORMATS)
AUTO: Final = "auto"


def format_named(name: str) -> Format:
    """The format of a name.

    Raises:
        ExchangeError: there is none.
    """
    for one in FORMATS:
        if one.name == name:
            return one
    raise ExchangeError(f"there is no format {name!r}; expected one of {', '.join(FORMAT_NAMES)}")


def detect(folder: Path) -> tuple[Format, str]:
    """The format of a folder and what was seen of it.

    Raises:
        ExchangeError: nothing known was seen, or signs of several formats; names them all.
    """
    seen = [(one, evidence) for one in FORMATS if (evidence := one.evidence(folder)) is not None]
    if len(seen) == 1:
        return seen[0]
    if seen:
        found = "; ".join(f"{one.name}: {evidence}" for one, evidence in seen)
        raise ExchangeError(f"{folder} could be of several formats ({found}); choose one with --format")
    if any(folder.rglob("*.pkl")):
        raise ExchangeError(
            f"{folder} holds .pkl files, which are never loaded here: they run what their author put in; write h5 "
            "files with the tool that made them"
        )
    known = "; ".join(f"{one.name}: {one.description}" for one in FORMATS)
    raise ExchangeError(f"{folder}: no features of a known format were seen ({known})")
