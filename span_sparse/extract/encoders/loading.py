"""Which object does `--encoder NAME` mean?

The embedded descriptor `stain-texture` needs nothing. Everything else is looked up by name.
"""

from __future__ import annotations

from pathlib import Path

from span_sparse.errors import ConfigError
from span_sparse.extract.encoder import PatchEncoder
from span_sparse.extract.stain_texture import StainTextureEncoder


def load_encoder(
    name: str,
    *,
    weights: Path | None = None,
    device: str = "cpu",
    precision: str | None = None,
    input_size_px: int | None = None,
    mpp: float | None = None,
) -> PatchEncoder:
    """The encoder of this name.

    Args:
        name: what people type, for example `stain-texture` or `uni_v2`.
        weights: file or folder of its weights; None: the Hugging Face cache.
        device: `cpu`, `cuda` or `cuda:N`; ignored by encoders without a network.
        precision: dtype in which vectors are stored, `float16` or `float32`; None: the encoder's own.
        input_size_px: edge of the patches; None: the encoder's own.
        mpp: µm per pixel of the patches; None: the encoder's own.

    Raises:
        ConfigError: no such encoder, or it cannot be used with these settings.
    """
    if name == "stain-texture":
        return _stain_texture(weights, precision, input_size_px, mpp)
    raise ConfigError(f"--encoder {name}: there is no encoder of this name; `span encoders` lists them")


def _stain_texture(
    weights: Path | None, precision: str | None, input_size_px: int | None, mpp: float | None
) -> StainTextureEncoder:
    if weights is not None:
        raise ConfigError(
            f"--encoder-weights {weights}: the encoder stain-texture has no weights; leave the option out"
        )
    if precision not in (None, "float32"):
        raise ConfigError(f"--precision {precision}: the encoder stain-texture gives float32; leave the option out")
    defaults = StainTextureEncoder()
    try:
        return StainTextureEncoder(
            defaults.input_size_px if input_size_px is None else input_size_px, defaults.mpp if mpp is None else mpp
        )
    except ValueError as error:
        raise ConfigError(f"--patch-size {input_size_px}, --target-mpp {mpp}: {error}") from error
