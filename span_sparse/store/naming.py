"""Under which folder name does a slide lie in the store, and whose folder is this?

Slide ids come from hospitals: they hold `/`, dots, spaces, accents, and differ by case alone. The folder name must be
reversible, safe on file systems that ignore case, and never one that Zarr or Windows keeps for itself. Three steps:

1. UTF-8 bytes other than `A-Z a-z 0-9 . _ -` become `=` and two hexadecimal digits.
2. A first or last character that would make the name special is escaped the same way.
3. If the id holds upper-case letters, `+` and a hexadecimal mask say which (bit i: the i-th ASCII letter of the id).

Percent-encoding instead would be decoded once too often by web servers, and escaping each capital makes TCGA
barcodes unreadable. The normative text is in FORMAT.md.
"""

from __future__ import annotations

import re
from typing import Final

from span_sparse.errors import StoreError

MAX_NAME_BYTES: Final = 255
"""Longest file name of the common file systems."""

TEMPORARY_PREFIX: Final = "__tmp-"
"""Folders and files under construction; no slide's name starts with an underscore."""

_SAFE: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_ESCAPE: Final = re.compile(rb"=([0-9a-f]{2})")
_DEVICES: Final = {"con", "prn", "aux", "nul"} | {f"{port}{number}" for port in ("com", "lpt") for number in range(10)}
_RESERVED_STEMS: Final = frozenset(_DEVICES | {"zarr"})


def group_name(slide_id: str) -> str:
    """The folder name of a slide.

    Raises:
        StoreError: the id is empty, is not valid Unicode, or its name would be longer than 255 bytes.

    >>> group_name("block 7/slide.1")
    'block=207=2fslide.1'
    >>> group_name("TCGA-3C-x") != group_name("tcga-3c-x")
    True
    """
    if not slide_id:
        raise StoreError("a slide id is empty; give every slide of the cohort table a name")
    try:
        raw = slide_id.encode("utf-8")
    except UnicodeEncodeError as error:
        raise StoreError(f"slide id {slide_id!r} is not valid Unicode text; rename the slide") from error
    name = "".join(chr(byte) if byte in _SAFE else f"={byte:02x}" for byte in raw)
    if name[0] in "._" or name.split(".")[0].lower() in _RESERVED_STEMS:
        name = f"={ord(name[0]):02x}{name[1:]}"
    if name.endswith("."):
        name = f"{name[:-1]}=2e"
    mask = sum(1 << index for index, letter in enumerate(_ascii_letters(slide_id)) if letter.isupper())
    if mask:
        name = f"{name}+{mask:x}"
    if len(name) > MAX_NAME_BYTES:
        raise StoreError(
            f"slide id {slide_id[:40]!r}… needs a folder name of {len(name)} bytes, file systems allow "
            f"{MAX_NAME_BYTES}; give the slide a shorter slide_id in the cohort table"
        )
    return name


def slide_id_of(name: str) -> str:
    """The slide whose folder has this name; inverse of `group_name`.

    Raises:
        StoreError: no slide id has this folder name.

    >>> slide_id_of("block=207=2fslide.1")
    'block 7/slide.1'
    """
    body, _, mask_text = name.partition("+")
    try:
        raw = _ESCAPE.sub(lambda match: bytes([int(match.group(1), 16)]), body.encode("ascii"))
        mask = int(mask_text, 16) if mask_text else 0
        slide_id = _with_case(raw.decode("utf-8"), mask)
        canonical = group_name(slide_id)
    except (UnicodeError, ValueError, StoreError) as error:
        raise StoreError(f"folder {name!r} is not the name of a slide group") from error
    if canonical != name:
        raise StoreError(f"folder {name!r} is not the name of a slide group (did you mean {canonical!r}?)")
    return slide_id


def _ascii_letters(text: str) -> list[str]:
    return [letter for letter in text if letter.isascii() and letter.isalpha()]


def _with_case(text: str, mask: int) -> str:
    letters: list[str] = []
    index = 0
    for letter in text:
        if letter.isascii() and letter.isalpha():
            letters.append(letter.upper() if mask >> index & 1 else letter.lower())
            index += 1
        else:
            letters.append(letter)
    return "".join(letters)
