"""Make the small files of every foreign format: `python tests/conformance/foreign/make_foreign.py FOLDER`.

Written from the formats' descriptions with h5py, numpy, torch and json, never with this project's writers; the part
for LazySlide with its own library (`pip install wsidata==0.12.0`), and left out where that is missing. Run once.

Every slide has five patches in the order of `CELLS`; features follow from the cell: 10 · row + col + (0, ¼, -½).
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import tifffile
import torch

CELLS = np.array([[2, 1], [0, 0], [0, 3], [5, 2], [1, 1]])
XY = CELLS[:, ::-1].astype(np.int64)
FEATURES = (CELLS[:, :1] * 10 + CELLS[:, 1:] + np.array([0.0, 0.25, -0.5])).astype(np.float32)


def h5(path: Path, datasets: dict, attributes: dict | None = None, chunks: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, data in datasets.items():
            rows = (1, data.shape[1]) if chunks and np.ndim(data) == 2 else None
            file.create_dataset(name, data=data, chunks=rows)
        for place, values in (attributes or {}).items():
            for name, value in values.items():
                file[place].attrs[name] = value


def trident(folder: Path) -> None:
    """40x slide read at 20x: 224 px are 448 px of level 0, neighbours 384 px apart (overlap of 32 px)."""
    attributes = {
        "patch_size": 224, "patch_size_level0": 448, "level0_magnification": 40, "target_magnification": 20,
        "overlap": 32, "name": "T1", "savetodir": "None", "level0_width": 4000, "level0_height": 3000,
    }  # fmt: skip
    job = folder / "20x_224px_32px_overlap"
    coords = XY * 384
    h5(
        job / "features_uni_v1" / "T1.h5",
        {"features": FEATURES.astype(np.float16), "coords": coords},
        {"coords": attributes, "features": {"name": "T1", "savetodir": "None", "encoder": "uni_v1"}},
        chunks=True,
    )
    h5(job / "patches" / "T1_patches.h5", {"coords": coords}, {"coords": attributes})


def clam(folder: Path) -> None:
    """256 px of a level 4 times coarser: 1,024 px of level 0, all from (100, 60); `C2` has two contours."""
    for name, coords in {
        "C1": XY * 1024 + np.array([100, 60]),
        "C2": XY * 1024 + np.where(CELLS[:, :1] < 5, [100, 60], [400, 70]),
    }.items():
        attributes = {
            "patch_size": 256, "patch_level": 1, "downsample": np.array([4.0, 4.0]),
            "downsampled_level_dim": np.array([2000, 2500]), "level_dim": np.array([2000, 2500]), "name": name,
            "save_path": "out/patches",
        }  # fmt: skip
        h5(folder / "patches" / f"{name}.h5", {"coords": coords}, {"coords": attributes})
        h5(folder / "h5_files" / f"{name}.h5", {"features": FEATURES, "coords": coords.astype(np.int32)}, chunks=True)
        (folder / "pt_files").mkdir(exist_ok=True)
        torch.save(torch.from_numpy(FEATURES), folder / "pt_files" / f"{name}.pt")


def span(folder: Path) -> None:
    ratios = np.array([0, 1, 0.25, 0.5, 0], np.float32)
    label = np.array([[0, 1, 0]], np.float32)
    h5(folder / "S1.h5", {"feats": FEATURES, "cords": XY * 224, "ratios": ratios, "label": label, "caption": "Größe"})


def patchpreprocess(folder: Path) -> None:
    """Rescaled by 1.9 from level 0: neighbours 426 px apart."""
    h5(folder / "P1.h5", {"feats": FEATURES, "cords": XY * 426})


def span_st(folder: Path) -> None:
    extras = {
        "mol_feats": FEATURES[:, :2], "cords": XY, "float_cords": (XY + 0.125).astype(np.float32),
        "orig_cords": (XY * 443.3).astype(np.float32), "total_umi_counts": np.arange(5, dtype=np.float32),
        "union_gene_names": np.array([b"EGFR", b"TP53"]), "hvg_indices": np.array([1]), "heg_indices": np.array([0]),
    }  # fmt: skip
    h5(folder / "gene" / "ST1.h5", extras)
    h5(folder / "imge_uni" / "ST1.h5", {"mor_feats": FEATURES})


def stamp(folder: Path) -> None:
    """0.2527 µm/px: tiles of 1,014 px (256.2378 µm) inside super-tiles of 4,096 µm."""
    tile_um = float(np.ceil(256 / 0.2527) * 0.2527)
    coords = (XY * tile_um).astype(np.float32)
    attributes = {
        "stamp_version": "2.4.0", "extractor": "chief-ctranspath", "unit": "um", "tile_size_um": 256.0,
        "tile_size_px": 224, "code_hash": "1234abcd", "feat_type": "tile",
    }  # fmt: skip
    features = FEATURES.astype(np.float16)
    h5(folder / "uni-1234abcd" / "site a" / "M1.h5", {"feats": features, "coords": coords}, {"/": attributes})


def slideflow(folder: Path) -> None:
    """302 µm at 0.2527 µm/px: tiles of 1,195 px, from (17, 900); the index has their centres."""
    folder.mkdir(parents=True)
    edge = int(302 / 0.2527)
    torch.save(torch.from_numpy(FEATURES), folder / "F1.pt")
    np.savez(folder / "F1.index.npz", arr_0=XY * edge + np.array([17, 900]) + int(edge / 2))
    config = {"extractor": "uni", "normalizer": None, "num_features": 3, "tile_px": 299, "tile_um": 302}
    (folder / "bags_config.json").write_text(json.dumps(config))


def atlaspatch(folder: Path) -> None:
    coords = np.concatenate([XY * 512, np.tile([512, 512, 0], (5, 1))], axis=1).astype(np.int32)
    attributes = {"/": {"patch_size": 256, "patch_size_level0": 512}}
    h5(folder / "patches" / "A1.h5", {"coords": coords, "features/uni_v1": FEATURES}, attributes)


def slide2vec(folder: Path) -> None:
    embeddings, tiles = folder / "tile_embeddings", folder / "tiles"
    embeddings.mkdir(parents=True)
    tiles.mkdir()
    meta = {"tile_size_lv0": 448, "spacings": [0.25, 0.5], "coordinate_space": "level_0"}
    (embeddings / "V1.meta.json").write_text(json.dumps(meta))
    torch.save(torch.from_numpy(FEATURES.astype(np.float16)), embeddings / "V1.pt")
    np.savez(
        tiles / "V1.coordinates.npz", x=XY[:, 0] * 448, y=XY[:, 1] * 448, tile_index=np.arange(5),
        tissue_fractions=np.linspace(0.5, 0.9, 5),
    )  # fmt: skip


def histossl(folder: Path) -> None:
    """Level 11 of a slide whose longer side is 6,000 px (level 13): a tile of 224 px is 896 px of level 0."""
    (folder / "H1").mkdir(parents=True)
    np.save(folder / "H1" / "features.npy", np.concatenate([np.full((5, 1), 11), XY, FEATURES], 1).astype(np.float32))


def lazyslide(folder: Path) -> None:
    from wsidata import TileSpec, open_wsi
    from wsidata.io import add_features, add_tiles

    with tempfile.TemporaryDirectory() as place:
        picture = Path(place) / "L1.tif"
        resolution = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}  # 0.5 µm/px
        pixels = np.full((800, 1000, 3), 200, np.uint8)
        tifffile.imwrite(picture, pixels, tile=(256, 256), photometric="rgb", compression="jpeg", **resolution)
        slide = open_wsi(picture, store=str(Path(place) / "L1.zarr"))
        spec = TileSpec(
            height=64, width=64, stride_height=64, stride_width=64, mpp=1.0, ops_downsample=2.0, base_downsample=2.0
        )
        add_tiles(slide, "tiles", XY * 128, spec, np.zeros(5, int))
        add_features(slide, "uni_tiles", "tiles", FEATURES)
        folder.mkdir(parents=True)
        slide.write(str(folder / "L1.zarr"))


def main(folder: Path) -> None:
    """Make every format's folder."""
    for make in (trident, clam, span, patchpreprocess, span_st, stamp, slideflow, atlaspatch, slide2vec, histossl):
        make(folder / make.__name__.replace("_", "-"))
    if importlib.util.find_spec("wsidata"):
        lazyslide(folder / "lazyslide")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
