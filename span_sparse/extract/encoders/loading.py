"""Which object does `--encoder NAME` mean?

In this order: the embedded descriptor `stain-texture`; a row of the table (`catalogue`); a file `*.pt2` or `*.ts`
(`programs`); a plug-in of an installed distribution (`plugins`). A plug-in cannot take a name of the table: the same
name would then mean another vector on another machine.

torch is imported only when a network is wanted; the descriptor does without.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from span_sparse.errors import ConfigError
from span_sparse.extract.encoder import PatchEncoder
from span_sparse.extract.encoders.plugins import load_plugin, plugins
from span_sparse.extract.stain_texture import StainTextureEncoder
from span_sparse.types import EncoderIdentity

if TYPE_CHECKING:
    from span_sparse.extract.encoders.catalogue import EncoderSpec
    from span_sparse.extract.encoders.torch_encoder import TorchEncoder

DESCRIPTOR: Final = "stain-texture"
PROGRAM_SUFFIXES: Final = (".pt2", ".ts")
ONLY_AS_PROGRAM: Final = {"conch_v15": "https://huggingface.co/MahmoodLab/conchv1_5"}
"""Networks whose code is published under terms that do not let it be part of this package, and where they are."""


def load_encoder(
    name: str,
    *,
    weights: Path | None = None,
    device: str = "cpu",
    precision: str | None = None,
    input_size_px: int | None = None,
    mpp: float | None = None,
    allow_download: bool = False,
    trust_program: bool = False,
) -> PatchEncoder:
    """The encoder of this name.

    Args:
        name: what people type, for example `stain-texture` or `uni_v2`, or the path of a program `*.pt2`, `*.ts`.
        weights: file or folder of its weights; None: the Hugging Face cache.
        device: `cpu`, `cuda` or `cuda:N`; ignored by encoders without a network.
        precision: `float32`, `float16` or `bfloat16` (`torch_encoder` says what each computes and stores); None: the
            encoder's own, `float16` for the networks of the table.
        input_size_px: edge of the patches; None: the encoder's own.
        mpp: µm per pixel of the patches; None: the encoder's own.
        allow_download: fetch weights that are not on this machine.
        trust_program: load a program although that can run code of whoever wrote it.

    Returns:
        The encoder; picklable. The weights file is checked now, a network is made of it when the first patch comes.

    Raises:
        ConfigError: no such encoder, or it cannot be used with these settings.
    """
    if input_size_px is not None and input_size_px < 1:
        raise ConfigError(f"--patch-size {input_size_px}: expected at least 1 px")
    if mpp is not None and not 0 < mpp < float("inf"):
        raise ConfigError(f"--target-mpp {mpp}: expected positive micrometres per pixel")
    if name == DESCRIPTOR:
        return _stain_texture(weights, precision, input_size_px, mpp)
    if Path(name).suffix in PROGRAM_SUFFIXES:
        if weights is not None:
            raise ConfigError(f"--encoder-weights {weights}: the program {name} has its own; leave the option out")
        from span_sparse.extract.encoders.programs import load_program

        return load_program(
            Path(name),
            trust_program=trust_program,
            device=device,
            precision=precision,
            input_size_px=input_size_px,
            mpp=mpp,
        )
    from span_sparse.extract.encoders.catalogue import SPECS

    if name in SPECS:
        return _network(
            SPECS[name],
            weights,
            device=device,
            precision=precision or "float16",
            input_size_px=input_size_px,
            mpp=mpp,
            allow_download=allow_download,
        )
    known = plugins()
    if name in ONLY_AS_PROGRAM and name not in known:
        raise ConfigError(
            f"--encoder {name}: its code is published under CC-BY-NC-ND terms and is not part of this package; load "
            f"it as {ONLY_AS_PROGRAM[name]} shows, save it with torch.export (docs/encoders.md says how), and pass "
            f"--encoder {name}.pt2 --trust-program"
        )
    if name not in known:
        close = difflib.get_close_matches(name, (DESCRIPTOR, *SPECS, *known), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(f"--encoder {name}: there is no encoder of this name; {hint}`span encoders` lists them")
    return load_plugin(
        known[name], weights=weights, device=device, precision=precision, input_size_px=input_size_px, mpp=mpp
    )


def _stain_texture(
    weights: Path | None, precision: str | None, input_size_px: int | None, mpp: float | None
) -> StainTextureEncoder:
    if weights is not None:
        raise ConfigError(f"--encoder-weights {weights}: the encoder {DESCRIPTOR} has no weights; leave the option out")
    if precision not in (None, "float32"):
        raise ConfigError(f"--precision {precision}: the encoder {DESCRIPTOR} gives float32; leave the option out")
    defaults = StainTextureEncoder()
    try:
        return StainTextureEncoder(
            defaults.input_size_px if input_size_px is None else input_size_px, defaults.mpp if mpp is None else mpp
        )
    except ValueError as error:
        raise ConfigError(f"--patch-size {input_size_px}: {error}") from error


def _network(
    spec: EncoderSpec,
    weights: Path | None,
    *,
    device: str,
    precision: str,
    input_size_px: int | None,
    mpp: float | None,
    allow_download: bool,
) -> TorchEncoder:
    from span_sparse.extract.encoders.finding import find_weights
    from span_sparse.extract.encoders.torch_encoder import (
        TorchEncoder,
        check_settings,
        computed_precision,
        stored_precision,
    )
    from span_sparse.extract.encoders.weights import NetworkOf, WeightsFile, check_weights

    check_settings(device, precision)
    path = find_weights(spec, weights, allow_download=allow_download)
    check_weights(spec, path)
    file = WeightsFile.of(path)
    coarse = "+bfloat16" if precision == "bfloat16" else ""
    identity = EncoderIdentity(
        name=spec.name,
        revision=f"{spec.version}+sha256:{file.sha256[:16]}{coarse}",
        readout=spec.readout,
        dimension=spec.dimension,
        input_size_px=spec.input_size_px if input_size_px is None else input_size_px,
        mpp=spec.mpp if mpp is None else mpp,
        precision=stored_precision(precision),
    )
    return TorchEncoder(
        identity, spec.transform, NetworkOf(spec.name, file, computed_precision(precision)), device, precision
    )
