"""How does a figure become part of a page that needs nothing else?

As an SVG in a `data:` address of an `<img>`: a picture cannot run scripts, and the ids of two figures, which matplotlib
makes alike, cannot meet. Letters are drawn as outlines, so that the figure looks the same without our fonts. Pictures
of slides are made small first; a thousand full ones would be gigabytes.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from PIL import Image

from span_sparse.evaluation import PredictionTable
from span_sparse.evaluation.figures import STYLE
from span_sparse.evaluation.predictions import PROBABILITY_PREFIX, Y_PRED, Y_TRUE

PICTURE_EDGE_PX: Final = 1000
MAX_SOURCE_PX: Final = 80_000_000
"""Pixels of a picture that is opened at all; a small file can claim to be terabytes."""

SHORT: Final = 24


def svg_address(figure: Figure) -> str:
    """A figure as a `data:` address, the same for the same figure."""
    buffer = io.BytesIO()
    with mpl.rc_context({**STYLE, "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight", pad_inches=0.1)
    return _address("image/svg+xml", buffer.getvalue())


def picture_address(path: Path, edge_px: int = PICTURE_EDGE_PX) -> str | None:
    """A picture, made small, as a `data:` address; None when it is missing, damaged or too large to be opened.

    Args:
        path: PNG of a slide.
        edge_px: longest side of the result.
    """
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            if picture.width * picture.height > MAX_SOURCE_PX:
                return None
            flat = Image.new("RGB", picture.size, "white")
            rgba = picture.convert("RGBA")
            flat.paste(rgba, mask=rgba.getchannel("A"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
    flat.thumbnail((edge_px, edge_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    flat.save(buffer, format="JPEG", quality=85, optimize=True)
    return _address("image/jpeg", buffer.getvalue())


def drawable(text: str, length: int = SHORT) -> str:
    r"""A text that the font has, that fits beside an axis and is not taken for a formula.

    >>> drawable("tumour $x$ 腫瘍")
    'tumour \\$x\\$ ??'
    """
    known = get_font(findfont("DejaVu Sans")).get_charmap()
    shown = "".join(letter if ord(letter) in known and letter.isprintable() else "?" for letter in text)
    return (shown if len(shown) <= length else shown[: length - 1] + "…").replace("$", r"\$")


def with_drawable_classes(table: PredictionTable) -> PredictionTable:
    """The same table with class names that can be drawn; names that became the same are numbered."""
    names: dict[str, str] = {}
    for name in table.class_names:
        shown = drawable(name).replace(r"\$", "$")  # the figures escape it themselves
        names[name] = shown if shown not in names.values() else f"{shown[: SHORT - 5]} ({len(names) + 1})"
    frame = table.frame.rename(
        columns={PROBABILITY_PREFIX + old: PROBABILITY_PREFIX + new for old, new in names.items()}
    )
    for column in (Y_TRUE, Y_PRED):
        frame[column] = [names.get(value, value) for value in frame[column]]
    return PredictionTable(frame, tuple(names.values()), table.source)


def counts(num_slides: int, num_cases: int) -> str:
    """The line below a figure."""
    return f"n = {num_slides} slide{'s' * (num_slides != 1)} of {num_cases} patient{'s' * (num_cases != 1)}"


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
