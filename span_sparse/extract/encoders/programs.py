"""How does a network that is a file of its own, code included, become an encoder?

`--encoder model.pt2` (torch.export) or `--encoder model.ts` (TorchScript), with a description beside it,
`model.yaml` or `model.json`, of what the file cannot say:

    name: my-encoder        # identity
    readout: cls            # identity
    dimension: 384
    input_size_px: 256      # edge of the patches
    mpp: 0.5
    mean: [0.485, 0.456, 0.406]
    std: [0.229, 0.224, 0.225]
    resize_px: 224          # optional: edge after resizing; without it patches go in as they are
    crop_px: 224            # optional: centre the program sees
    interpolation: bicubic  # optional: bilinear or bicubic
    batch_size: 8           # optional: the batch the program was exported for, if only that one works

The program takes normalised float32 `[batch, 3, edge, edge]` and returns `[batch, dimension]`.

Neither format is data: torch.export unpickles parts of its archive, TorchScript brings operations of its own. Whoever
wrote the file can run what they like as you. Both are therefore loaded only with `--trust-program`.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from torch import Tensor

from span_sparse.errors import ConfigError
from span_sparse.extract.encoders.torch_encoder import PRECISIONS, TorchEncoder, stored_precision
from span_sparse.extract.encoders.transform import Transform
from span_sparse.extract.encoders.weights import WeightsFile
from span_sparse.types import EncoderIdentity

EXPORTED: Final = ".pt2"
SCRIPTED: Final = ".ts"
SUFFIXES: Final = (EXPORTED, SCRIPTED)
_DESCRIPTIONS: Final = (".yaml", ".yml", ".json")
_MAX_DESCRIPTION_BYTES: Final = 2**16
_MAX_DIMENSION: Final = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramDescription:
    """What stands in the file beside a program; see the module's text."""

    name: str
    readout: str
    dimension: int
    input_size_px: int
    mpp: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize_px: int | None = None
    crop_px: int | None = None
    interpolation: str = "bicubic"
    batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class ProgramIn:
    """How a worker process loads a program; picklable.

    Attributes:
        file: the program.
    """

    file: WeightsFile

    def __call__(self, device: torch.device) -> Any:
        """The program on a device, as a function from inputs to vectors.

        Raises:
            ConfigError: it cannot be loaded; the function raises it when the program fails.
        """
        self.file.check_unchanged()
        path = self.file.path
        try:
            program = _exported(path, device) if path.suffix == EXPORTED else _scripted(path, device)
        except Exception as error:  # the formats raise whatever they like on a damaged file
            raise ConfigError(f"{path}: cannot be loaded as a program ({_reason(error)}); export it again") from error

        def run(inputs: Tensor) -> Tensor:
            try:
                return program(inputs)
            except (RuntimeError, AssertionError) as error:
                raise ConfigError(
                    f"{path}: the program fails on float32 {list(inputs.shape)} ({_reason(error)}); if it was exported "
                    "for one batch size, give batch_size in its description"
                ) from error

        return run


def _exported(path: Path, device: torch.device) -> Any:
    return torch.export.load(path).module().to(device)


def _scripted(path: Path, device: torch.device) -> Any:
    with warnings.catch_warnings():
        # torch 2.13 says on every load that TorchScript is not developed any further
        warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", DeprecationWarning)
        return torch.jit.load(path, map_location=device).eval()


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1][:200] if lines else type(error).__name__


def load_program(
    path: Path,
    *,
    trust_program: bool,
    device: str,
    precision: str | None,
    input_size_px: int | None,
    mpp: float | None,
) -> TorchEncoder:
    """An encoder from a program and its description.

    Args:
        path: `*.pt2` or `*.ts`.
        trust_program: loading the file may run code of whoever wrote it; without it nothing is loaded.
        device: where it runs.
        precision: of the stored vectors, `float32` or `float16`; None: float32. A program's arithmetic is its own.
        input_size_px: edge of the patches, None: the description's.
        mpp: their µm per pixel, None: the description's.

    Raises:
        ConfigError: it is not trusted, not there, or its description is missing or wrong.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such program")
    if not trust_program:
        raise ConfigError(
            f"{path}: loading a program can run code of whoever wrote it; if you trust them, add --trust-program"
        )
    if precision == "bfloat16" or (precision is not None and precision not in PRECISIONS):
        raise ConfigError(f"--precision {precision}: a program's vectors are stored as float32 or float16")
    description = read_description(path)
    size = description.input_size_px if input_size_px is None else input_size_px
    crop_px = description.crop_px or description.resize_px or size
    transform = Transform(
        description.resize_px,
        crop_px,
        description.interpolation,  # type: ignore[arg-type]  # checked by read_description
        description.mean,
        description.std,
    )
    file = WeightsFile.of(path)
    identity = EncoderIdentity(
        name=description.name,
        revision=f"sha256:{file.sha256[:16]}" + _preparation(transform, size),
        readout=description.readout,
        dimension=description.dimension,
        input_size_px=size,
        mpp=description.mpp if mpp is None else mpp,
        precision=stored_precision(precision or "float32"),
    )
    # the program's own arithmetic: no autocast
    return TorchEncoder(identity, transform, ProgramIn(file), device, "float32", description.batch_size)


def _preparation(transform: Transform, size: int) -> str:
    """A description may change without the program: what of it decides the vector, as a short text."""
    values = (transform.resize_px or size, transform.crop_px, transform.interpolation, transform.mean, transform.std)
    return f"+{hashlib.sha256(repr(values).encode()).hexdigest()[:8]}"


def read_description(program: Path) -> ProgramDescription:
    """The description beside a program.

    Raises:
        ConfigError: there is none, or a value is missing, unknown or impossible.
    """
    path = next((found for suffix in _DESCRIPTIONS if (found := program.with_suffix(suffix)).is_file()), None)
    if path is None:
        raise ConfigError(
            f"{program}: no description beside it; write {program.with_suffix('.yaml').name} with name, readout, "
            "dimension, input_size_px, mpp, mean, std (docs/encoders.md)"
        )
    if path.stat().st_size > _MAX_DESCRIPTION_BYTES:
        raise ConfigError(f"{path}: {path.stat().st_size} bytes, expected a description of a few lines")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML or JSON ({str(error).splitlines()[0]})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, found {type(values).__name__}")
    known = {entry.name: entry for entry in fields(ProgramDescription)}
    if unknown := [str(key) for key in values if key not in known]:
        raise ConfigError(f"{path}: unknown {', '.join(unknown)}; expected some of {', '.join(known)}")
    required = [name for name, entry in known.items() if entry.default is MISSING]
    if missing := [name for name in required if name not in values]:
        raise ConfigError(f"{path}: {', '.join(missing)} missing")
    return ProgramDescription(**{key: _value(path, key, value) for key, value in values.items()})


def _value(path: Path, key: str, value: Any) -> Any:
    if key in ("name", "readout"):
        valid, expected = isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable(), "a short text"
    elif key == "interpolation":
        valid, expected = value in ("bilinear", "bicubic"), "bilinear or bicubic"
    elif key in ("mean", "std"):
        valid = isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))
        valid = valid and (key == "mean" or min(value) > 0)
        value, expected = tuple(map(float, value)) if valid else value, "three numbers" + ", above 0" * (key == "std")
    elif key == "mpp":
        valid, expected = _is_number(value) and 0 < value < float("inf"), "a number above 0"
        value = float(value) if valid else value
    else:
        optional = key in ("resize_px", "crop_px", "batch_size")
        whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MAX_DIMENSION
        valid, expected = whole or (optional and value is None), f"a whole number from 1 to {_MAX_DIMENSION}"
    if not valid:
        raise ConfigError(f"{path}: {key}: expected {expected}, found {value!r:.80}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value and abs(value) < 1e9
