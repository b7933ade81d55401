"""How do scores of patches lie beside a slide's features without touching them?

An array `scores-NAME` in the slide's folder, float32 `[patches, scores]`, rows like `features`, of the one kind that
the format allows; the names of the scores are in its attributes. It is no part of the slide: `optional_arrays` does not
list it, whoever does not know it does not see it, and it goes when the slide is replaced, since scores of other
features would be wrong. It is made under a temporary name in the store and renamed, like everything here.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from span_sparse.errors import StoreError
from span_sparse.store.naming import group_name
from span_sparse.store.reader import FeatureStore
from span_sparse.store.shard import METADATA_FILE, SHARD_FILE, read_array, read_json
from span_sparse.store.writer import commit_folder, fsync_path, temporary_folder, write_array

PREFIX: Final = "scores-"
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class StoredScores(NamedTuple):
    """Scores as they are in the store.

    Attributes:
        names: of the columns.
        values: float32 `[patches, scores]`, rows like the slide's features.
        about: where they come from, plain JSON.
    """

    names: tuple[str, ...]
    values: NDArray[np.float32]
    about: dict[str, Any]


def write_scores(
    store: FeatureStore,
    slide_id: str,
    name: str,
    score_names: Sequence[str],
    values: NDArray[np.float32],
    about: Mapping[str, Any],
) -> None:
    """Write a slide's scores, replacing those of the same name.

    Args:
        store: the slide's store.
        slide_id: the slide.
        name: of this set of scores, letters, digits, `_` and `-`.
        score_names: of the columns.
        values: float32 `[patches, scores]`, rows like the slide's features.
        about: where they come from, plain JSON.

    Raises:
        StoreError: the slide is not there, the scores do not fit it, or the disk refuses.
    """
    folder = _folder(store, slide_id, name)
    expected = store.metadata(slide_id).num_patches, len(score_names)
    if values.shape != expected or values.dtype != np.float32:
        raise StoreError(
            f"scores of slide {slide_id!r}: expected float32 {list(expected)}, "
            f"found {values.dtype} {list(values.shape)}"
        )
    temporary = temporary_folder(store.path)
    try:
        write_array(temporary, values)
        document = read_json(temporary / METADATA_FILE)
        document["attributes"] = {"scores": list(score_names), "about": dict(about)}
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
        (temporary / METADATA_FILE).write_text(f"{text}\n", encoding="utf-8")
        for path in sorted(temporary.rglob("*"), reverse=True):
            fsync_path(path)
        commit_folder(temporary, folder, replace=True)
        fsync_path(folder.parent)
    except OSError as error:
        raise StoreError(f"{folder}: scores cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_scores(store: FeatureStore, slide_id: str, name: str) -> StoredScores:
    """A slide's scores.

    Raises:
        StoreError: there are none, or they are damaged.
    """
    folder = _folder(store, slide_id, name)
    num_patches = store.metadata(slide_id).num_patches
    if not folder.is_dir():
        raise StoreError(
            f"slide {slide_id!r} in {store.path} has no scores {name!r}; `span heatmap --into-store {name}`"
        )
    for file in (METADATA_FILE, SHARD_FILE):
        if not (folder / file).resolve().is_relative_to(store.path.resolve()):
            raise StoreError(f"{folder / file} leads out of the store through a link; refused")
    values = read_array(folder, ("float32",), verify=True)
    attributes = read_json(folder / METADATA_FILE).get("attributes")
    names = attributes.get("scores") if isinstance(attributes, dict) else None
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise StoreError(f"{folder}: does not name its scores; write them again")
    if values.shape != (num_patches, len(names)):
        raise StoreError(f"{folder}: {list(values.shape)} values for {num_patches} patches and {len(names)} scores")
    about = attributes.get("about")
    return StoredScores(tuple(names), values, about if isinstance(about, dict) else {})


def _folder(store: FeatureStore, slide_id: str, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise StoreError(f"scores {name!r}: expected a name of up to 64 letters, digits, `_` and `-`")
    return store.path / group_name(slide_id) / f"{PREFIX}{name}"
