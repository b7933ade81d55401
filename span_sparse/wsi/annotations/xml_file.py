"""How is an XML file read that somebody else wrote? Elements, attributes and corners, without entities.

1. A file above `MAX_FILE_BYTES` is refused before it is read, one with a document type declaration at that declaration:
   entities, internal or external, cannot even be defined.
2. Elements become `Node`s, but for the corners, of which a file has up to millions: those go into an array of numbers.
3. Numbers may have a decimal comma, which ASAP writes in countries that do.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from span_sparse.errors import AnnotationError
from span_sparse.wsi.geojson import MAX_COORDINATE_PX0

MAX_FILE_BYTES: Final = 256 * 1024**2
MAX_DEPTH: Final = 32
_CORNER_TAGS: Final = frozenset({"Coordinate", "Vertex"})


@dataclass(slots=True)
class Node:
    """An element.

    Attributes:
        tag: its name.
        attributes: by name.
        children: the elements in it, without corners.
    """

    tag: str
    attributes: dict[str, str]
    children: list[Node] = field(default_factory=list)
    _corners: array[float] = field(default_factory=lambda: array("d"))

    def all(self, *tags: str) -> list[Node]:
        """The elements reached by a path of tags, for example `root.all("Regions", "Region")`."""
        found: list[Node] = [self]
        for tag in tags:
            found = [child for node in found for child in node.children if child.tag == tag]
        return found

    def corners(self) -> NDArray[np.float64]:
        """The corners `(x, y)` directly in this element, float64 `[corners, 2]`, in their `Order` if they have one."""
        table = np.array(self._corners, dtype=np.float64).reshape(-1, 3)
        return table[np.argsort(table[:, 0], kind="stable"), 1:]

    def add_corner(self, order: float, x: float, y: float) -> None:
        """Appends a corner."""
        self._corners.extend((order, x, y))


def read_xml(path: Path) -> Node:
    """The root element of a file.

    Raises:
        AnnotationError: the file cannot be read, is too large, not XML, has a document type declaration, or a corner
            whose coordinates are not numbers; names the line.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise AnnotationError(
                f"{path}: has {path.stat().st_size / 1024**2:.0f} MiB, expected at most {MAX_FILE_BYTES // 1024**2}"
            )
        content = path.read_bytes()
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read: {error.strerror or error}") from error
    return _Builder(path).parse(content)


class _Builder:
    """Makes `Node`s of what the parser finds."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = [Node("", {})]
        self._parser = expat.ParserCreate()
        self._parser.StartDoctypeDeclHandler = self._refuse_doctype
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end

    def parse(self, content: bytes) -> Node:
        try:
            self._parser.Parse(content, True)
        except (expat.ExpatError, LookupError, ValueError) as error:  # LookupError: an encoding that nobody knows
            raise AnnotationError(
                f"{self._path}: is not XML ({error}); is it complete, and an annotation file?"
            ) from error
        return self._stack[0].children[0]

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if len(self._stack) > MAX_DEPTH:
            self._fail(f"elements are nested deeper than {MAX_DEPTH} levels")
        parent = self._stack[-1]
        if tag in _CORNER_TAGS:
            order = self._number(attributes, "Order") if "Order" in attributes else 0.0
            parent.add_corner(order, self._number(attributes, "X"), self._number(attributes, "Y"))
            node = Node(tag, {})
        else:
            node = Node(tag, attributes)
            parent.children.append(node)
        self._stack.append(node)

    def _end(self, tag: str) -> None:
        self._stack.pop()

    def _number(self, attributes: dict[str, str], name: str) -> float:
        text = attributes.get(name, "").strip()
        try:
            value = float(text.replace(",", ".")) if "_" not in text else math.nan
        except ValueError:
            value = math.nan
        if not abs(value) <= MAX_COORDINATE_PX0:
            self._fail(f"attribute {name} must be a number such as 1234.5 or 1234,5, at most 2^31, found {text[:40]!r}")
        return value

    def _refuse_doctype(self, *_: object) -> NoReturn:
        self._fail("has a document type declaration, which annotation files do not need; refused")

    def _fail(self, reason: str) -> NoReturn:
        raise AnnotationError(f"{self._path}, line {self._parser.CurrentLineNumber}: {reason}")
