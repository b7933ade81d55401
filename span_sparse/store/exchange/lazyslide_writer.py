"""How is a SpatialData store written with one table of features and the tiles it belongs to?

The layout is that of spatialdata 0.7 with AnnData tables (encoding versions 0.1 and 0.2), written with zarr and pyarrow
alone: the libraries themselves pull in some hundred packages. Everything is written under a temporary name and renamed.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import zarr
from numpy.typing import NDArray

from span_sparse.errors import ExchangeError

_AXES = [{"name": name, "type": "space", "unit": "unit"} for name in ("x", "y")]
_SHAPES = {
    "encoding-type": "ngff:shapes",
    "axes": ["x", "y"],
    "coordinateTransformations": [
        {"type": "identity", "input": {"name": "xy", "axes": _AXES}, "output": {"name": "global", "axes": _AXES}}
    ],
    "spatialdata_attrs": {"version": "0.3"},
}


def write_spatialdata(
    path: Path,
    attributes: Mapping[str, Any],
    table: str,
    tiles: str,
    features: NDArray[Any],
    columns: Mapping[str, NDArray[Any]],
) -> None:
    """Write a store, replacing one that is there.

    Args:
        path: the store's folder.
        attributes: of the root group.
        table: name of the table of features.
        tiles: name of the shapes.
        features: `[patches, channels]`.
        columns: of the tiles, `[patches]` each, and `bounds` `[patches, 4]`; `tile_id` is made where it is missing.

    Raises:
        ExchangeError: pyarrow is not installed.
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:32]}.{uuid.uuid4().hex}.tmp")
    try:
        root = zarr.create_group(temporary, zarr_format=3, attributes=dict(attributes))
        ids = columns.get("tile_id", np.arange(len(features)))
        _write_table(root.create_group("tables").create_group(table), tiles, features, ids)
        shapes = root.create_group("shapes").create_group(tiles, attributes=_SHAPES)
        _write_tiles(temporary / shapes.path / "shapes.parquet", columns, ids)
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_table(group: zarr.Group, tiles: str, features: NDArray[Any], ids: NDArray[Any]) -> None:
    group.attrs.update(
        {
            "encoding-type": "anndata", "encoding-version": "0.1.0", "region": tiles, "region_key": "library_id",
            "instance_key": "tile_id", "spatialdata-encoding-type": "ngff:regions_table", "version": "0.2",
        }
    )  # fmt: skip
    _array(group, "X", features)
    obs = _frame(group, "obs", ["tile_id", "library_id"], ids.astype(str))
    _array(obs, "tile_id", ids)
    library = obs.create_group("library_id", attributes=_encoding("categorical", "0.2.0") | {"ordered": False})
    _texts(library, "categories", np.array([tiles]))
    _array(library, "codes", np.zeros(len(features), np.int8))
    _frame(group, "var", [], np.arange(features.shape[1]).astype(str))
    for name in ("layers", "obsm", "obsp", "varm", "varp"):
        group.create_group(name, attributes=_encoding("dict", "0.1.0"))
    uns = group.create_group("uns", attributes=_encoding("dict", "0.1.0"))
    described = uns.create_group("spatialdata_attrs", attributes=_encoding("dict", "0.1.0"))
    for name, value in {"region": tiles, "region_key": "library_id", "instance_key": "tile_id"}.items():
        _texts(described, name, np.array(value), "string")


def _encoding(kind: str, version: str) -> dict[str, Any]:
    return {"encoding-type": kind, "encoding-version": version}


def _frame(group: zarr.Group, name: str, columns: list[str], index: NDArray[Any]) -> zarr.Group:
    attributes = _encoding("dataframe", "0.2.0") | {"column-order": columns, "_index": "_index"}
    frame = group.create_group(name, attributes=attributes)
    _texts(frame, "_index", index)
    return frame


def _array(group: zarr.Group, name: str, values: NDArray[Any]) -> None:
    target = group.create_array(
        name, shape=values.shape, dtype=values.dtype, chunks=values.shape, attributes=_encoding("array", "0.2.0"),
    )  # fmt: skip
    target[...] = values


def _texts(group: zarr.Group, name: str, values: NDArray[Any], kind: str = "string-array") -> None:
    target = group.create_array(
        name, shape=values.shape, dtype="string", chunks=values.shape, attributes=_encoding(kind, "0.2.0")
    )
    target[...] = values.astype(object)


def _write_tiles(path: Path, columns: Mapping[str, NDArray[Any]], ids: NDArray[Any]) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ExchangeError("writing LazySlide needs pyarrow: pip install 'span-sparse[lazyslide]'") from error
    bounds = columns["bounds"]
    polygons = shapely.box(*bounds.T)
    plain = {
        name: pyarrow.array(values) for name, values in ({"tile_id": ids} | dict(columns)).items() if values.ndim == 1
    }
    table = pyarrow.table(plain | {"geometry": pyarrow.array(shapely.to_wkb(polygons), pyarrow.binary())})
    described = {
        "version": "1.0.0",
        "primary_column": "geometry",
        "columns": {"geometry": {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": None}},
    }
    parquet.write_table(table.replace_schema_metadata({"geo": json.dumps(described)}), path)
