"""How do LazySlide and wsidata lay out features?

`<slide>.zarr`, a SpatialData store. `shapes/<tiles>/shapes.parquet` has the tiles' polygons at level 0,
`tables/<model>_<tiles>` an AnnData table whose `X` are the features; `obs/tile_id` says which row is which tile.

Only what is needed is read: arrays of numbers in known codecs, one column of polygons.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import shapely
import zarr
from numpy.typing import NDArray

from span_sparse.errors import ExchangeError
from span_sparse.store.exchange.lattice_step import StepKnowledge
from span_sparse.store.exchange.layout import ExportSlide, Files, Format, check_features, read_json_object
from span_sparse.store.exchange.lazyslide_writer import write_spatialdata
from span_sparse.store.exchange.source import Request, SourceSlide, Stated, TensorFiles

MAX_COMPRESSION: Final = 200
_CODECS: Final = {"bytes", "zstd", "gzip", "blosc", "crc32c", "sharding_indexed"}
_ROUNDED_PX0: Final = 2.0


def _find(folder: Path) -> dict[str, Files]:
    if _is_spatialdata(folder):
        return {folder.name.removesuffix(".zarr"): (folder,)}
    stores = [path for path in sorted(folder.rglob("*.zarr")) if _is_spatialdata(path)]
    return {path.relative_to(folder).as_posix().removesuffix(".zarr"): (path,) for path in stores}


def _is_spatialdata(path: Path) -> bool:
    return (path / "zarr.json").is_file() and (path / "shapes").is_dir() and (path / "tables").is_dir()


def _evidence(folder: Path) -> str | None:
    found = next(iter(_find(folder).values()), None)
    return f"SpatialData in {found[0].name}" if found else None


def _read(files: Files, request: Request, tensors: TensorFiles) -> SourceSlide:
    root = files[0]
    if link := next((path for path in root.rglob("*") if path.is_symlink()), None):
        raise ExchangeError(f"{link} is a link; refused, copy the data into the store")
    attributes: dict[str, Any] = read_json_object(root / "zarr.json").get("attributes", {})
    properties, specs = attributes.get("slide_properties") or {}, attributes.get("tile_spec") or {}
    table, tiles = _table(root, list(specs), request)
    spec = specs.get(tiles, {})
    features = check_features(_read_array(table / "X"))
    frame = _read_tiles(root / "shapes" / tiles / "shapes.parquet")
    order = _tile_rows(table, frame, len(features))
    columns = {name: values[order] for name, values in frame.items()}
    bounds = columns["bounds"]
    edge = float(np.median(bounds[:, 2] - bounds[:, 0]))
    stride, width = (spec.get(name) for name in ("stride_width", "width"))
    stated = edge * stride / width if stride and width else None
    mpp, shape = properties.get("mpp"), properties.get("shape")
    return SourceSlide(
        features=features,
        coords_px0=bounds[:, :2],
        columns=columns,
        step=StepKnowledge(stated, 1.0, edge, _ROUNDED_PX0),
        mpp=request.slide_mpp(Stated(float(mpp), "slide_properties.mpp") if mpp else None),
        target_mpp=Stated(float(spec["mpp"]), f"tile_spec.{tiles}.mpp") if spec.get("mpp") else None,
        patch_size_px=Stated(float(width), f"tile_spec.{tiles}.width") if width else None,
        patch_px0=Stated(edge, "polygons of the tiles"),
        size_px0=(int(shape[1]), int(shape[0]), "slide_properties.shape") if shape else None,
        encoder_name=table.name.removesuffix(f"_{tiles}"),
        attributes={"root": attributes, "names": {"table": table.name, "tiles": tiles}},
        not_kept=tuple(_others(root, table, tiles)),
    )


def _table(root: Path, tile_keys: list[str], request: Request) -> tuple[Path, str]:
    """The table of features and the key of its tiles."""
    tables = {path.name: path for path in sorted((root / "tables").iterdir()) if (path / "X").is_dir()}
    wanted = request.settings.features_key
    chosen = [name for name in tables if wanted is None or name == wanted or name.startswith(f"{wanted}_")]
    if len(chosen) != 1:
        raise ExchangeError(
            f"choose one of the feature tables with --features-key: {', '.join(tables) or 'none'} (asked for {wanted})"
        )
    tiles = [key for key in tile_keys if chosen[0].endswith(f"_{key}")] or ["tiles"]
    return tables[chosen[0]], max(tiles, key=len)


def _read_array(path: Path) -> NDArray[Any]:
    """An array of numbers in codecs that run nothing, after comparing its size with that of its files."""
    document = read_json_object(path / "zarr.json")
    try:
        codecs = {codec["name"] for codec in document["codecs"]}
        shape = [int(extent) for extent in document["shape"]]
        dtype = np.dtype(document["data_type"])
    except (KeyError, TypeError, ValueError) as error:
        raise ExchangeError(f"{path} is not an array of numbers in Zarr v3 ({error})") from error
    if not codecs <= _CODECS or dtype.kind not in "iuf":
        raise ExchangeError(f"{path}: {dtype} with codecs {', '.join(sorted(codecs))} is refused")
    stored = sum(member.stat().st_size for member in path.rglob("*") if member.is_file())
    num_bytes = dtype.itemsize
    for extent in shape:
        num_bytes *= extent
    if num_bytes > MAX_COMPRESSION * stored + 2**16:
        raise ExchangeError(f"{path} claims {dtype} {shape}, but only {stored} bytes were written; it is incomplete")
    try:
        return np.asarray(zarr.open_array(path, mode="r")[...])
    except (ValueError, TypeError, KeyError, OSError, RuntimeError) as error:
        raise ExchangeError(f"{path} cannot be read: {error}") from error


def _read_tiles(path: Path) -> dict[str, NDArray[Any]]:
    """Numeric columns of the tiles and the bounds `(x0, y0, x1, y1)` of their polygons."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ExchangeError("reading LazySlide needs pyarrow: pip install 'span-sparse[lazyslide]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            if file.metadata.num_rows * 8 > MAX_COMPRESSION * path.stat().st_size:
                raise ExchangeError(
                    f"{path} claims {file.metadata.num_rows} rows in {path.stat().st_size} bytes; refused"
                )
            table = file.read()
        polygons = shapely.from_wkb(table.column("geometry").to_numpy())
        frame: dict[str, NDArray[Any]] = {"bounds": shapely.bounds(polygons)}
        for name in table.column_names:
            if name != "geometry" and (
                pyarrow.types.is_integer(table.schema.field(name).type)
                or pyarrow.types.is_floating(table.schema.field(name).type)
            ):
                frame[name] = table.column(name).to_numpy()
    except (OSError, KeyError, ValueError, TypeError, pyarrow.ArrowException, shapely.errors.ShapelyError) as error:
        raise ExchangeError(f"{path} cannot be read as GeoParquet: {error}") from error
    return frame


def _tile_rows(table: Path, frame: dict[str, NDArray[Any]], num_features: int) -> NDArray[np.intp]:
    """For each row of the features, its row among the tiles."""
    ids = frame.get("tile_id")
    if ids is None or not (table / "obs" / "tile_id" / "zarr.json").is_file():
        if len(frame["bounds"]) != num_features:
            raise ExchangeError(
                f"{table} has {num_features} rows, but there are {len(frame['bounds'])} tiles without ids"
            )
        return np.arange(num_features)
    wanted = _read_array(table / "obs" / "tile_id")
    rows = {value: row for row, value in enumerate(ids.tolist())}
    if len(rows) != len(ids) or len(wanted) != num_features or not set(wanted.tolist()) <= set(rows):
        raise ExchangeError(f"{table}: its {num_features} rows do not name {len(ids)} tiles by a unique tile_id")
    return np.array([rows[value] for value in wanted.tolist()], dtype=np.intp)


def _others(root: Path, table: Path, tiles: str) -> list[str]:
    """Elements that stay behind."""
    kept = {table, root / "shapes" / tiles}
    return [
        path.relative_to(root).as_posix()
        for kind in ("images", "labels", "points", "shapes", "tables")
        if (root / kind).is_dir()
        for path in sorted((root / kind).iterdir())
        if path.is_dir() and path not in kept
    ]


def _outputs(slide_id: str) -> tuple[str, ...]:
    return (f"{slide_id}.zarr",)


def _write(slide: ExportSlide, folder: Path, tensors: TensorFiles) -> None:
    record, lattice, edge = slide.record, slide.record.lattice, slide.patch_px0
    names = slide.attributes.get("names") or {"table": f"{record.encoder.name}_tiles", "tiles": "tiles"}
    downsample = edge / lattice.spec.patch_size_px
    stride = round(lattice.step_px0 / downsample)
    root = slide.attributes.get("root") or {
        "spatialdata_attrs": {"version": "0.2", "spatialdata_software_version": "0.7.3"},
        "slide_properties": {
            "shape": [record.height_px0, record.width_px0],
            "n_level": 1,
            "level_shape": [[record.height_px0, record.width_px0]],
            "level_downsample": [1.0],
            "mpp": lattice.slide_mpp,
            "magnification": None,
            "bounds": [0, 0, record.width_px0, record.height_px0],
            "scene": 0,
            "raw": "{}",
        },
        "tile_spec": {
            names["tiles"]: {
                "height": lattice.spec.patch_size_px, "width": lattice.spec.patch_size_px, "stride_height": stride,
                "stride_width": stride, "mpp": lattice.spec.target_mpp, "ops_level": 0, "ops_downsample": downsample,
                "base_level": 0, "base_downsample": downsample, "tissue_name": None,
            }
        },
    }  # fmt: skip
    columns = dict(slide.columns)
    if not columns:
        corners = record.coords.astype(np.float64)
        columns = {
            "bounds": np.concatenate([corners, corners + edge], axis=1),
            "tile_id": np.arange(len(corners)), "x": record.coords[:, 0], "y": record.coords[:, 1],
        }  # fmt: skip
    path = folder / _outputs(record.slide_id)[0]
    write_spatialdata(path, root, names["table"], names["tiles"], slide.features(), columns)


LAZYSLIDE = Format("lazyslide", "<slide>.zarr, SpatialData of wsidata", _find, _evidence, _read, _outputs, _write)
