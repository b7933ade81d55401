"""Which file annotates a slide, and what kind of file is it?

Files are found by the slide's id, else by the name or stem of its file (`slide.xml`, `slide.svs.geojson`), in the
folder or the same sub-folder. The folder is listed once: asking the disk for every slide and suffix takes minutes on a
network file system. The kind is what the file itself says, not its suffix alone: ASAP and ImageScope both write `.xml`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path, PureWindowsPath
from typing import Final

from span_sparse.errors import AnnotationError
from span_sparse.wsi.annotations.programs import gather_aperio, gather_asap, gather_geojson
from span_sparse.wsi.annotations.shapes import Gathering, SlideAnnotations
from span_sparse.wsi.annotations.xml_file import Node, read_xml
from span_sparse.wsi.geojson import load_geojson

XML_SUFFIX: Final = ".xml"
GEOJSON_SUFFIXES: Final = (".geojson", ".json")
FORMATS: Final = ("auto", "asap", "aperio", "geojson")

_XML_READERS: Final[dict[str, tuple[str, Callable[[Node], Gathering]]]] = {
    "ASAP_Annotations": ("asap", gather_asap),
    "Annotations": ("aperio", gather_aperio),
}


class AnnotationFiles:
    """The annotation files of a folder and its sub-folders.

    Args:
        folder: where they are.
        kind: only files of this format; `auto` for all.

    Raises:
        AnnotationError: there is no such folder, or no annotation file in it.
    """

    def __init__(self, folder: Path, kind: str = "auto") -> None:
        self.folder = folder
        suffixes = {"auto": (XML_SUFFIX, *GEOJSON_SUFFIXES), "geojson": GEOJSON_SUFFIXES}.get(kind, (XML_SUFFIX,))
        if not folder.is_dir():
            raise AnnotationError(f"{folder}: no such folder of annotations")
        self._by_name: dict[str, list[Path]] = {}
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file():
                name = path.relative_to(folder).as_posix()
                self._by_name.setdefault(name[: -len(path.suffix)], []).append(path)
        if not self._by_name:
            raise AnnotationError(f"{folder}: holds no annotation files ({', '.join(suffixes)})")

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files, sorted by name."""
        return tuple(path for paths in self._by_name.values() for path in paths)

    def of(self, slide_id: str, slide_file: str | None = None) -> Path | None:
        """The file of a slide, None when there is none.

        Args:
            slide_id: the slide.
            slide_file: its file as the cohort table names it.

        Raises:
            AnnotationError: several files could be it.
        """
        for name in _names(slide_id, slide_file):
            found = self._by_name.get(name, [])
            if len(found) > 1:
                raise AnnotationError(
                    f"{self.folder}: slide {slide_id!r} has several annotation files "
                    f"({', '.join(path.name for path in found)}); keep one, or choose with --format"
                )
            if found:
                return found[0]
        return None


def read_annotations(path: Path, kind: str = "auto") -> SlideAnnotations:
    """The annotations in a file.

    Args:
        path: XML of ASAP or Aperio ImageScope, or GeoJSON.
        kind: one of `FORMATS`; `auto` takes what the file is.

    Raises:
        AnnotationError: the file cannot be read, or is none of these, or not of this kind.
    """
    if path.suffix.lower() in GEOJSON_SUFFIXES:
        _require(path, kind, "geojson")
        return gather_geojson(load_geojson(path), str(path)).result(path, "geojson")
    root = read_xml(path)
    if root.tag not in _XML_READERS:
        raise AnnotationError(
            f"{path}: the root element is {root.tag[:40]!r}, expected ASAP_Annotations (ASAP) or Annotations (Aperio "
            "ImageScope); export the annotations again, or as GeoJSON"
        )
    found, gather = _XML_READERS[root.tag]
    _require(path, kind, found)
    return gather(root).result(path, found)


def _require(path: Path, wanted: str, found: str) -> None:
    if wanted not in ("auto", found):
        raise AnnotationError(f"{path}: is a file of format {found}, expected {wanted}; leave out --format")


def _names(slide_id: str, slide_file: str | None) -> Iterable[str]:
    """Names without suffix, most telling first."""
    yield slide_id
    if slide_file is None:
        return
    name = PureWindowsPath(slide_file).as_posix()
    for candidate in (name, name.rsplit("/", 1)[-1]):
        yield candidate
        yield candidate.rsplit(".", 1)[0]
