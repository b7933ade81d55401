"""Which encoders can I use here, and what exactly does each do?

`span encoders` lists the names that `span extract --encoder` takes, with vector, patches, terms, and whether the
weights are on this machine. `span encoders show NAME` prints one of them in full, with the three lines that lead to its
weights. Nothing is downloaded, no weights are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from span_sparse.extract.encoders.catalogue import EncoderSpec

DESCRIPTION = "List the encoders and whether they can be used here; `show NAME` prints one in full."


def build_parser() -> ArgumentParser:
    """The options of `span encoders`."""
    parser = ArgumentParser(prog="span encoders", description=DESCRIPTION)
    parser.add_argument("action", type=Literal["list", "show"], nargs="?", default="list", help="what to print")
    parser.add_argument("name", type=str | None, nargs="?", default=None, help="encoder to show")
    return parser


def run(args: Namespace) -> int:
    """List or show; 0.

    Raises:
        ConfigError: there is no such encoder, or none was named.
    """
    from span_sparse.errors import ConfigError

    if args.action == "list":
        if args.name is not None:
            raise ConfigError(f"span encoders list takes no name; did you mean `span encoders show {args.name}`?")
        _list()
        return 0
    if args.name is None:
        raise ConfigError("span encoders show: name an encoder; `span encoders` lists them")
    _show(args.name)
    return 0


def _list() -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from span_sparse.extract.encoders.catalogue import SPECS
    from span_sparse.extract.encoders.plugins import distribution_of, plugins
    from span_sparse.extract.stain_texture import StainTextureEncoder

    console = Console(highlight=False)
    table = Table("name", "vector", "readout", "patch px", "µm/px", "weights", "licence", "usable here")
    own = StainTextureEncoder().identity
    table.add_row(
        own.name, str(own.dimension), own.readout, str(own.input_size_px), f"{own.mpp:g}", "none", "Apache-2.0", "yes"
    )
    for spec in SPECS.values():
        cells = (
            spec.name,
            str(spec.dimension),
            spec.readout,
            str(spec.input_size_px),
            f"{spec.mpp:g}",
            "gated" if spec.gated else "open",
            spec.licence,
            _usable(spec),
        )
        table.add_row(*map(Text, cells))
    for entry in plugins().values():
        state = f"hidden by the encoder {entry.name} above" if entry.name in (own.name, *SPECS) else "plug-in"
        table.add_row(*map(Text, (entry.name, "?", "?", "?", "?", "?", distribution_of(entry), state)))
    console.print(table)
    console.print(
        "`span encoders show NAME` says more; weights may also be given: --encoder NAME --encoder-weights FOLDER\n"
        "programs: --encoder FILE.pt2 or FILE.ts with a description beside it (docs/encoders.md)",
        markup=False,
        soft_wrap=True,
    )


def _show(name: str) -> None:
    from span_sparse.errors import ConfigError
    from span_sparse.extract.encoders.catalogue import SPECS
    from span_sparse.extract.encoders.loading import load_encoder
    from span_sparse.extract.encoders.plugins import plugins

    if name in SPECS:
        rows = _rows_of_network(SPECS[name])
    elif name in (known := plugins()):
        rows = _rows_of_plugin(known[name])
    else:
        try:
            identity = load_encoder(name).identity
        except ConfigError as error:
            raise ConfigError(str(error).removeprefix("--encoder ")) from error
        rows = {key: str(value) for key, value in identity.as_dict().items()} | {"usable here": "yes"}
    width = max(map(len, rows))
    for key, value in rows.items():
        print(f"{key:<{width}}  {value}")


def _rows_of_network(spec: EncoderSpec) -> dict[str, str]:
    from span_sparse.extract.encoders.finding import how_to_get

    transform = spec.transform
    resize = f"resize to {transform.resize_px} px ({transform.interpolation}), " if transform.resize_px else ""
    usable = _usable(spec)
    rows = {
        "name": spec.name,
        "vector": f"{spec.dimension} numbers, {spec.readout}, stored as float16 (--precision float32 for float32)",
        "patches": f"{spec.input_size_px} px at {spec.mpp:g} µm/px, unless --patch-size, --target-mpp say otherwise",
        "transform": f"{resize}centre {transform.crop_px} px, mean {transform.mean}, std {transform.std}",
        "weights": f"{' or '.join(spec.files)}; {'gated' if spec.gated else 'open'}, {spec.licence}",
        "source": spec.source,
        "usable here": usable,
    }
    if not usable.startswith("yes"):
        rows |= {f"step {index}": line for index, line in enumerate(how_to_get(spec, "").splitlines(), start=1)}
        rows["step 1"] = rows["step 1"].partition("1. ")[2]
        rows |= {key: rows[key].partition(". ")[2] for key in ("step 2", "step 3")}
    return rows


def _rows_of_plugin(entry: EntryPoint) -> dict[str, str]:
    from span_sparse.extract.encoders.plugins import distribution_of, load_plugin

    settings = {"weights": None, "device": "cpu", "precision": None, "input_size_px": None, "mpp": None}
    rows = {"name": entry.name, "distribution": distribution_of(entry), "code": entry.value}
    return rows | {key: str(value) for key, value in load_plugin(entry, **settings).identity.as_dict().items()}


def _usable(spec: EncoderSpec) -> str:
    """`yes`, or what is missing."""
    from importlib.util import find_spec

    from span_sparse.errors import ConfigError
    from span_sparse.extract.encoders.finding import find_weights

    missing = [name for name in ("timm", "safetensors", "huggingface_hub") if find_spec(name) is None]
    if missing:
        return f"no: pip install 'span-sparse[encoders]' ({', '.join(missing)} missing)"
    try:
        return f"yes: {find_weights(spec, None)}"
    except ConfigError:
        return "weights missing"
