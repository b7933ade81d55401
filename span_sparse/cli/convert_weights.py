"""Conversion of weights trained with the authors' released code, and its verification: `span convert-weights`.

Either converts (`OFFICIAL.pt --official-config RUN.yaml --store STORE --class-names … --output OUT.ckpt`): the
configuration says which model it is, the store which features it reads, the result is a checkpoint like any other. Or
verifies (`--verify FILE.npz …`): runs reference files of the authors' code through the converted model in float64 and
float32 (`--device cuda`: float32 alone, spconv has no float64 there) and prints the largest relative error of every
output, stage and gradient digest.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    import torch

    from span_sparse.models.verify import Comparison

DESCRIPTION = "Convert weights of the authors' code into a checkpoint, or verify the conversion on reference files."


def build_parser() -> ArgumentParser:
    """The options of `span convert-weights`."""
    parser = ArgumentParser(prog="span convert-weights", description=DESCRIPTION)
    parser.add_argument("official", type=Path, nargs="?", help="state dict of the authors' code (torch.save)")
    parser.add_argument(
        "--official-config", type=Path, help="its resolved hydra configuration, YAML or JSON (all defaults in it)"
    )
    parser.add_argument("--store", type=Path, help="a store of the features the model reads: encoder and lattice")
    parser.add_argument("--class-names", type=str, nargs="+", help="names of the outputs, in their order")
    parser.add_argument("--output", type=Path, help="the checkpoint to write")
    parser.add_argument("--verify", type=Path, nargs="+", metavar="FILE.npz", help="reference files to check")
    parser.add_argument("--device", type=str, default="cpu", help="where --verify runs: auto, cpu, cuda or cuda:N")
    parser.add_argument("--details", action="store_true", help="print every quantity, not only the largest of a kind")
    return parser


def run(args: Namespace) -> int:
    """Converts or verifies; returns 1 when a verified error is above tolerance.

    Raises:
        SpanError: bad input.
    """
    from span_sparse.errors import ConfigError

    if args.verify:
        return _verify(args.verify, args.device, details=args.details)
    missing = [
        option
        for option, value in (
            ("OFFICIAL.pt", args.official),
            ("--official-config", args.official_config),
            ("--store", args.store),
            ("--class-names", args.class_names),
            ("--output", args.output),
        )
        if not value
    ]
    if missing:
        raise ConfigError(f"span convert-weights needs {', '.join(missing)} (or --verify FILE.npz …); see --help")
    return _convert(args)


def _convert(args: Namespace) -> int:
    import lightning

    from span_sparse.datasets import ClassificationTask
    from span_sparse.errors import CheckpointError
    from span_sparse.models import build_network, config_from_official, convert_state_dict
    from span_sparse.models.bundle import load_plain, write_bundle
    from span_sparse.store import FeatureStore

    config = config_from_official(_read_config(args.official_config))
    encoder, lattice = FeatureStore(args.store).common_identity()
    task = ClassificationTask(class_names=tuple(args.class_names)).on(encoder, lattice)
    network = build_network(config, num_features=task.num_features, num_classes=task.num_classes)
    weights = convert_state_dict(_state_dict(load_plain(args.official), args.official), config)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{args.official}: its weights do not fit {args.official_config}, features of {task.num_features} channels "
            f"({args.store}) and {task.num_classes} outputs: {error}"
        ) from error
    write_bundle(args.output, config, network.state_dict(), task.as_dict(), lightning_version=lightning.__version__)
    count = sum(parameter.numel() for parameter in network.parameters())
    print(f"{type(network).__name__}, {count:,} parameters, written to {args.output}")
    return 0


def _state_dict(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The state dict itself, where a training script wrapped it or DDP prefixed its names."""
    from torch import Tensor

    from span_sparse.errors import CheckpointError

    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content.get(key), dict):
            content = content[key]
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: expected a state dict, names and tensors only, found keys {list(content)[:5]}")
    return {name.removeprefix("module."): value for name, value in content.items()}


def _read_config(path: Path) -> dict[str, Any]:
    import yaml

    from span_sparse.errors import ConfigError

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML or JSON ({error})") from error
    if isinstance(content, dict) and isinstance(content.get("config"), dict):
        content = content["config"]  # the description of a reference file
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected the authors' configuration with the keys `model`, `task`, …")
    return content


def _verify(paths: list[Path], device_name: str, *, details: bool) -> int:
    import torch
    from rich.console import Console
    from rich.table import Table

    from span_sparse.cli.device_option import device_of
    from span_sparse.models.verify import TOLERANCE, dtypes_on, verify_reference

    device = torch.device(device_of(device_name))
    dtypes = dtypes_on(device)
    title = f"largest relative errors on {device}"
    table = Table("file", "dtype", "outputs", "stages", "gradients", "verdict", title=title)
    failed = 0
    for path in paths:
        for dtype in dtypes:
            compared = verify_reference(path, dtype, device)
            passed = all(one.passed for one in compared)
            failed += not passed
            table.add_row(
                path.stem,
                _name(dtype),
                *(_largest(compared, kinds) for kinds in (("out/",), ("enc", "dec"), ("grad_", "gd/"))),
                "ok" if passed else f"above {TOLERANCE[dtype]:g}",
            )
            if details or not passed:
                for one in compared:
                    if details or not one.passed:
                        print(f"{path.stem} {_name(dtype)} {one.quantity}: {one.error:.2e}")
    Console(width=None if Console().is_terminal else 140).print(table)
    if torch.float64 not in dtypes:
        print(f"float64 is not run on {device}: spconv has none there")
    print(f"{len(paths)} files, {failed} of {len(dtypes) * len(paths)} runs above tolerance")
    return int(failed > 0)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _largest(compared: list[Comparison], kinds: tuple[str, ...]) -> str:
    errors = [one.error for one in compared if one.quantity.startswith(kinds)]
    return f"{max(errors):.1e}" if errors else "–"
