"""Which inputs are damaged in `fuzz.py`, and how?

Good inputs of every kind are made once, small and the same on every machine; real slides are taken too where a folder
of them is given. A mutation is a function of bytes and random numbers: the same seed and case give the same bytes.
"""

from __future__ import annotations

import io
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tifffile
from PIL import Image

EDGE_PX0, PATCH_PX, TILE_PX = 160, 32, 64
ROOT = Path(__file__).parents[2]
FOREIGN = ROOT / "tests" / "conformance" / "foreign"
FOREIGN_FORMATS = (
    "atlaspatch", "clam", "histossl", "lazyslide", "patchpreprocess", "slide2vec", "slideflow", "span", "span-st",
    "stamp", "trident",
)  # fmt: skip
SECRET = "kept-outside"
"""A word in files outside of the folder given; finding it in a store or message is a leak."""

APERIO = "Aperio Image Library v12.2.2 \r\n160x160 [0,0 160x160] (64x64) JPEG/RGB Q=30|AppMag = 10|MPP = 1.0"
ASAP = """<?xml version="1.0"?>
<ASAP_Annotations><Annotations><Annotation Name="a" Type="Polygon" PartOfGroup="tumor"><Coordinates>
<Coordinate Order="0" X="8" Y="8"/><Coordinate Order="1" X="150" Y="9.5"/><Coordinate Order="2" X="120" Y="140"/>
</Coordinates></Annotation></Annotations><AnnotationGroups><Group Name="tumor" PartOfGroup="None"/></AnnotationGroups>
</ASAP_Annotations>
"""
IMAGESCOPE = """<?xml version="1.0"?>
<Annotations MicronsPerPixel="1.0"><Annotation Id="1" Name="tumor"><Regions><Region Id="1" Type="0" NegativeROA="0">
<Vertices><Vertex X="8" Y="8"/><Vertex X="150" Y="9.5"/><Vertex X="120" Y="140"/></Vertices></Region></Regions>
</Annotation></Annotations>
"""
GEOJSON = {
    "type": "FeatureCollection",
    "features": [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[8, 8], [150, 9.5], [120, 140], [8, 8]]]},
            "properties": {"objectType": "annotation", "classification": {"name": "tumor", "color": [200, 0, 0]}},
        }
    ],
}
COHORT = "slide_id,case_id,mpp,path,label\ns,c1,1.0,s.tiff,a\nt,c1,,t.tiff,b\n"


def make_inputs(root: Path, slides: Path | None) -> dict[str, Path]:
    """Folders of good inputs by name: `slide-…`, `features-…`, `annotations-…` and `cohort`; stores are made later."""
    kinds: dict[str, Path] = {}
    picture = _picture()
    for name, options in {
        "slide-tiff": {"resolution": (10_000, 10_000), "resolutionunit": "CENTIMETER"},
        "slide-jpeg": {"resolution": (10_000, 10_000), "resolutionunit": "CENTIMETER"},
        "slide-svs": {"description": APERIO},
    }.items():
        kinds[name] = root / name
        kinds[name].mkdir()
        path = kinds[name] / ("s.svs" if name == "slide-svs" else "s.tiff")
        _write_slide(path, picture, is_jpeg=name != "slide-tiff", options=options)
    for name, relative in {
        "slide-real-dicom": "camelyon-node-overview.dcm",
        "slide-real-svs": "CMU-1-Small-Region.svs",
    }.items():
        if slides is not None and (slides / relative).is_file():
            kinds[name] = root / name
            kinds[name].mkdir()
            shutil.copyfile(slides / relative, kinds[name] / f"s{Path(relative).suffix}")
    for name in FOREIGN_FORMATS:
        kinds[f"features-{name}"] = Path(shutil.copytree(FOREIGN / name, root / f"features-{name}"))
    texts = {"asap": ("s.xml", ASAP), "aperio": ("s.xml", IMAGESCOPE), "geojson": ("s.geojson", json.dumps(GEOJSON))}
    for name, (file, text) in texts.items():
        kinds[f"annotations-{name}"] = root / f"annotations-{name}"
        kinds[f"annotations-{name}"].mkdir()
        (kinds[f"annotations-{name}"] / file).write_text(text)
    kinds["cohort"] = root / "cohort"
    shutil.copytree(kinds["slide-tiff"], kinds["cohort"])
    shutil.copyfile(kinds["cohort"] / "s.tiff", kinds["cohort"] / "t.tiff")
    (kinds["cohort"] / "cohort.csv").write_text(COHORT)
    return kinds


def _write_slide(path: Path, picture: np.ndarray, *, is_jpeg: bool, options: dict[str, Any]) -> None:
    tifffile.imwrite(
        path, _jpeg_tiles(picture) if is_jpeg else picture, shape=picture.shape, dtype=picture.dtype,
        tile=(TILE_PX, TILE_PX), photometric="rgb", compression="zlib", metadata=None, **options,
    )  # fmt: skip
    if is_jpeg:  # tifffile writes tiles that are encoded already, but as JPEG only with another package installed
        with tifffile.TiffFile(path, mode="r+b") as file:
            file.pages[0].tags["Compression"].overwrite(tifffile.COMPRESSION.JPEG)
            file.pages[0].tags["PhotometricInterpretation"].overwrite(tifffile.PHOTOMETRIC.YCBCR)


def _jpeg_tiles(picture: np.ndarray) -> Iterator[bytes]:
    """Complete JPEG streams, which tifffile stores as they are."""
    padded = np.pad(picture, ((0, -EDGE_PX0 % TILE_PX), (0, -EDGE_PX0 % TILE_PX), (0, 0)), mode="edge")
    for top in range(0, EDGE_PX0, TILE_PX):
        for left in range(0, EDGE_PX0, TILE_PX):
            file = io.BytesIO()
            tile = Image.fromarray(padded[top : top + TILE_PX, left : left + TILE_PX])
            tile.save(file, format="jpeg", quality=80, subsampling="4:2:0")
            yield file.getvalue()


def _picture() -> np.ndarray:
    """Coloured noise that looks like tissue everywhere."""
    noise = np.random.default_rng(0).integers(60, 200, (EDGE_PX0 // 8, EDGE_PX0 // 8, 3), dtype=np.uint8)
    picture = np.kron(noise, np.ones((8, 8, 1), np.uint8))
    picture[..., 0] = 230
    return picture


def damage(path: Path, choices: random.Random) -> str:
    """Change a file in one to three ways; says how."""
    content = path.read_bytes()
    is_text = path.suffix in (".xml", ".geojson", ".json", ".csv")
    applied: list[str] = []
    for _ in range(choices.choice((1, 1, 1, 2, 3))):
        name = choices.choice([*BINARY, *TEXT] if is_text else list(BINARY))
        content = (BINARY | TEXT)[name](content, choices)
        applied.append(name)
    path.write_bytes(content)
    return "+".join(applied)


def _flip(content: bytes, choices: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(choices.choice((1, 1, 4, 32))):
        if changed:
            changed[choices.randrange(len(changed))] ^= 1 << choices.randrange(8)
    return bytes(changed)


def _header_number(content: bytes, choices: random.Random) -> bytes:
    """An aligned number among the first 4 KiB, where headers are, or anywhere."""
    size = choices.choice((2, 4, 8))
    limit = min(len(content), choices.choice((256, 4096, len(content))))
    if limit <= size:
        return content
    start = choices.randrange(limit - size + 1) // size * size
    value = choices.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (4 * size)))
    return content[:start] + value.to_bytes(size, choices.choice(("little", "big"))) + content[start + size :]


def _swap(content: bytes, choices: random.Random) -> bytes:
    size = choices.choice((4, 16, 64, 512))
    if len(content) < 2 * size:
        return content[::-1]
    first, second = sorted(choices.randrange(len(content) // size) * size for _ in range(2))
    if first == second:
        return content
    a, b = content[first : first + size], content[second : second + size]
    return content[:first] + b + content[first + size : second] + a + content[second + size :]


def _insert(content: bytes, choices: random.Random) -> bytes:
    start = choices.randrange(len(content) + 1)
    return content[:start] + choices.randbytes(choices.choice((1, 2, 16, 300))) + content[start:]


def _truncate(content: bytes, choices: random.Random) -> bytes:
    return content[: choices.choice((0, 1, choices.randrange(len(content) + 1), max(0, len(content) - 1)))]


def _blank(content: bytes, choices: random.Random) -> bytes:
    start, size = choices.randrange(len(content) + 1), choices.choice((4, 64, 1024))
    blank = bytes(min(size, len(content) - start))
    return content[:start] + blank + content[start + len(blank) :]


def _text_number(content: bytes, choices: random.Random) -> bytes:
    found = list(re.finditer(rb"-?\d+(\.\d+)?", content))
    if not found:
        return content
    chosen = choices.choice(found)
    extremes = (b"0", b"-1", b"1e309", b"NaN", b"99999999999999999999", b"1e18", b"", b"null", b'"', b"-0.0", b"1e-320")
    return content[: chosen.start()] + choices.choice(extremes) + content[chosen.end() :]


def _text_piece(content: bytes, choices: random.Random) -> bytes:
    """A piece between delimiters, dropped, doubled or nested a thousand times."""
    parts = re.split(rb"(?<=[>,\]}\n])", content)
    position, how = choices.randrange(len(parts)), choices.choice(("drop", "double", "nest"))
    parts[position] = {"drop": b"", "double": parts[position] * 2, "nest": parts[position] * 2000}[how]
    return b"".join(parts)


Mutation = Callable[[bytes, random.Random], bytes]
BINARY: dict[str, Mutation] = {
    "flip": _flip, "header": _header_number, "swap": _swap, "insert": _insert, "truncate": _truncate, "blank": _blank,
}  # fmt: skip
TEXT: dict[str, Mutation] = {"number": _text_number, "piece": _text_piece}


def lead_outside(folder: Path, outside: Path, trick: str) -> None:
    """Make an input of `folder` name something in `outside`."""
    outside.mkdir()
    (outside / "secret.txt").write_text(SECRET)
    if trick in ("h5-external-link", "h5-virtual", "h5-external-storage"):
        _h5_outside(next(folder.rglob("features_*/*.h5")), outside / "secret.h5", trick)
    elif trick == "xml-entity":
        text = f'<!DOCTYPE a [<!ENTITY x SYSTEM "{(outside / "secret.txt").as_uri()}">]>'
        path = next(folder.glob("*.xml"))
        path.write_text(path.read_text().replace("?>", f"?>{text}").replace('"tumor"', '"&x;"'))
    elif trick == "store-link":
        slide = next(path for path in folder.iterdir() if path.is_dir())
        shutil.move(slide, outside / "slide")
        slide.symlink_to(outside / "slide")
    else:
        target = {"parent": "../outside/s.tiff", "absolute": str(outside / "s.tiff"), "deep": "x/../../outside/s.tiff"}
        shutil.copyfile(folder / "s.tiff", outside / "s.tiff")
        table = folder / "cohort.csv"
        table.write_text(table.read_text().replace(",s.tiff", f",{target[trick]}"))


def _h5_outside(path: Path, secret: Path, trick: str) -> None:
    with h5py.File(path, "r+") as file, h5py.File(secret, "w") as other:
        name = "features"
        values = np.asarray(file[name])
        other["data"] = values
        del file[name]
        if trick == "h5-external-link":
            file[name] = h5py.ExternalLink(str(secret), "data")
        elif trick == "h5-virtual":
            layout = h5py.VirtualLayout(values.shape, values.dtype)
            layout[...] = h5py.VirtualSource(str(secret), "data", values.shape)
            file.create_virtual_dataset(name, layout)
        else:
            raw = secret.with_suffix(".raw")
            raw.write_bytes(values.tobytes())
            file.create_dataset(name, values.shape, values.dtype, external=[(str(raw), 0, values.nbytes)])


TRICKS = {
    "h5-external-link": "features-trident", "h5-virtual": "features-trident", "h5-external-storage": "features-trident",
    "xml-entity": "annotations-asap", "store-link": "store", "parent": "cohort", "absolute": "cohort", "deep": "cohort",
}  # fmt: skip
"""Ways out of a folder, and the kind of input that tries each."""
