"""What happens between typing `span VERB ...` or `lightning fit ...` and the work itself?

1. The verb chooses one module of this package; nothing else is imported, so that `span --help` and `span inspect`
   answer without loading torch or spconv (seconds).
2. Every error a user can cause becomes one line on standard error and exit code 1; `SPAN_DEBUG=1` or `--debug` shows
   the stack trace as well.

Both names exist because Lightning installs no `lightning` script of its own any more (its command line moved to the
package lightning-sdk, whose script has the same name). What this package's `lightning` does not know it passes on to
such a package, when one is installed.

Exit codes: 0 done; 1 an error or a slide that failed; 2 the command line is wrong; 130 interrupted; 141 the reader of a
pipe has gone.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import keyword
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import ModuleType
from typing import Final

from span_sparse.errors import SpanError
from span_sparse.signals import noted
from span_sparse.version import package_version

VERBS: Final = (
    "inspect", "extract", "import", "annotate", "validate", "splits", "crossval", "runs", "evaluate", "predict",
    "heatmap", "compare", "report", "view", "export", "convert-weights", "encoders", "slurm", "doctor",
)  # fmt: skip
"""Each is a module of this package with `DESCRIPTION`, `build_parser()` and `run(args)`; see `_module` for its name."""

TRAINING_VERBS: Final = {
    "fit": "Train a model: `span fit --config experiments/span.yaml` (the same as `lightning fit ...`).",
    "test": "Compute the figures of a trained model on the test split.",
}
LIGHTNING_VERBS: Final = ("fit", "validate", "test")
"""What `lightning` offers; `span validate` is about stores. Slides are predicted by `span evaluate`."""

DEBUG_VARIABLE: Final = "SPAN_DEBUG"

EXIT_ERROR: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130
EXIT_BROKEN_PIPE: Final = 141


def span() -> None:
    """Entry point of the command `span`; exits the process."""
    sys.exit(_guarded(_span, sys.argv[1:]))


def lightning() -> None:
    """Entry point of the command `lightning`; exits the process."""
    sys.exit(_guarded(_lightning, sys.argv[1:]))


def _span(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if arguments else EXIT_USAGE
    verb, *rest = arguments
    if verb == "--version":
        print(f"span {package_version()}")
        return 0
    if verb in TRAINING_VERBS:
        return _training(arguments)
    if verb not in VERBS:
        return _unknown(verb, (*VERBS, *TRAINING_VERBS))
    module = _module(verb)
    return int(module.run(module.build_parser().parse_args(rest)) or 0)


def _module(verb: str) -> ModuleType:
    """`-` becomes `_`, and words that Python keeps for itself get one behind them: `import` is `import_`."""
    name = verb.replace("-", "_")
    return importlib.import_module(f"span_sparse.cli.{name}{'_' if keyword.iskeyword(name) else ''}")


def _lightning(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in LIGHTNING_VERBS:
        return _training(arguments)
    other = _other_lightning()
    if other is not None:
        name, command = other
        print(f"lightning: passing the command on to {name}", file=sys.stderr)
        return command() or 0
    verbs = "|".join(LIGHTNING_VERBS)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            f"usage: lightning {verbs} --config FILE [options]\n\n`lightning fit --help` shows the options of a verb."
        )
        return 0 if arguments else EXIT_USAGE
    if arguments[0] == "--version":
        print(f"lightning {importlib.metadata.version('lightning')}, span-sparse {package_version()}")
        return 0
    print(
        f"error: lightning {arguments[0]}: expected one of {verbs}. Other commands belong to the package "
        "lightning-sdk, which is not installed here",
        file=sys.stderr,
    )
    return EXIT_USAGE


def _training(arguments: Sequence[str]) -> int:
    """Hand a verb and its options to LightningCLI."""
    # entered before the import, which takes seconds: a signal may come then
    with noted(with_interrupt=True) if arguments[0] == "fit" else nullcontext():
        fit = importlib.import_module("span_sparse.cli.fit")
        return int(fit.main(list(arguments)) or 0)


def _other_lightning() -> tuple[str, Callable[[], int | None]] | None:
    """Name and entry point of another installed package that has a command `lightning`."""
    for entry in importlib.metadata.entry_points(group="console_scripts", name="lightning"):
        if not entry.value.startswith("span_sparse."):
            return entry.dist.name if entry.dist else entry.module, entry.load()
    return None


def _help() -> str:
    lines = [
        "usage: span VERB [options]",
        "",
        "Sparse Pyramid Attention Networks for whole-slide images.",
        "",
        "verbs:",
    ]
    descriptions = {verb: _module(verb).DESCRIPTION for verb in VERBS}
    ordered = [*VERBS[:5], *TRAINING_VERBS, *VERBS[5:]]
    lines += [f"  {verb:<17}{(descriptions | TRAINING_VERBS)[verb]}" for verb in ordered]
    lines += [
        "",
        "options:",
        "  --version  show the version",
        f"  --debug    show stack traces ({DEBUG_VARIABLE}=1 does the same)",
        "",
        "`span VERB --help` shows the options of a verb.",
    ]
    return "\n".join(lines)


def _unknown(verb: str, known: Sequence[str]) -> int:
    close = difflib.get_close_matches(verb, known, n=1)
    hint = f"did you mean `span {close[0]}`?" if close else f"expected one of {', '.join(known)}"
    print(f"error: span has no verb {verb!r}; {hint}", file=sys.stderr)
    return EXIT_USAGE


def _guarded(command: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Run a command; turn what a user can cause into one line and an exit code."""
    # Threads that wait by spinning starve each other: two runs on a node of two cores took eight times as long each.
    # Read once, when torch and spconv are loaded, so it must be set before.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    debug = os.environ.get(DEBUG_VARIABLE, "") not in ("", "0") or "--debug" in arguments
    try:
        code = command([argument for argument in arguments if argument != "--debug"])
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python flushes standard output once more while shutting down and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except (SpanError, OSError) as error:
        if debug:
            traceback.print_exc()
        message = str(error)
        if isinstance(error, OSError) and error.filename is not None:
            message = f"{error.filename}: {error.strerror}; check the path and its permissions"
        print(f"error: {message}", file=sys.stderr)
        return EXIT_ERROR
