"""How are the tissue settings given on the command line?

`--tissue.NAME VALUE`, the same for every verb; each value must be of the kind of the default. A mask belongs to one
slide, so its names are left to `span inspect --tissue-mask` and to the columns of the cohort table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from span_sparse.wsi import TissueSettings

TISSUE_HELP = (
    "how tissue is found: --tissue.method otsu|hed, --tissue.reject_pen, .reject_folds or .reject_blur true|false, "
    "--tissue.min_object_mm2 NUMBER, ..."
)


def tissue_settings(values: Mapping[str, object]) -> TissueSettings:
    """Settings from `--tissue.NAME VALUE`.

    Raises:
        ConfigError: a name that is none, or a value of another kind.
    """
    from span_sparse.errors import ConfigError
    from span_sparse.wsi import TissueSettings

    defaults = TissueSettings()
    known = {name: value for name, value in defaults.as_dict().items() if not name.startswith("mask_")}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"--tissue.{name} {value}: expected a name of: {', '.join(known)}")
        like = known[name]
        if isinstance(value, str) != isinstance(like, str) or isinstance(value, bool) != isinstance(like, bool):
            raise ConfigError(f"--tissue.{name} {value}: expected a value like {like!r}")
    return replace(defaults, **values)  # pyright: ignore[reportArgumentType]  # kinds are checked above
