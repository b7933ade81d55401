"""`span crossval`: one training for every fold and seed, and one summary.

1. The folds are columns of the cohort table that the configuration names. Each (fold, seed) is a run of its own in
   `OUTPUT/<fold>_seed<seed>`, the same as `lightning fit` with that split, seed and folder.
2. Finished runs are skipped, so the same command goes on after whatever stopped it. A run trained with other settings
   or on another split than the table's of today is refused: its figures must not enter the mean.
3. Each run is a process of its own, and one that breaks does not end the others. `--task-index` does one run within
   this process, for a job array: signals then reach the training, which writes a checkpoint and comes back.
4. The summary (`crossval_summary.py`) is written at the end, or by `--summarise`.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jsonargparse import ArgumentParser, Namespace

from span_sparse.signals import noted, requested

if TYPE_CHECKING:
    from span_sparse.cohort import CohortTable

DESCRIPTION = "Train every fold and seed of a configuration, and summarise: mean ± sd, pooled figures with intervals."

PLAN_FILE: Final = "crossval.json"
LOG_FILE: Final = "log.txt"
FOLD_COLUMN: Final = re.compile(r"(fold|split)_\w+")
_POLL_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run.

    Attributes:
        config: the YAML file.
        overrides: `KEY=VALUE` of the settings that differ from it.
        output: folder of all runs.
        folds: columns of the cohort table.
        seeds: of the runs of each fold.
        cohort: the table.
    """

    config: Path
    overrides: tuple[str, ...]
    output: Path
    folds: tuple[str, ...]
    seeds: tuple[int, ...]
    cohort: CohortTable

    @property
    def runs(self) -> list[tuple[str, int]]:
        """Fold and seed of every run; its position is the `--task-index`."""
        return [(fold, seed) for seed in self.seeds for fold in self.folds]

    def folder(self, fold: str, seed: int) -> Path:
        """Run folder of a fold and a seed."""
        return self.output / f"{fold}_seed{seed}"

    def command(self, fold: str, seed: int) -> list[str]:
        """Words for `span` that train a run."""
        own = {
            "data.init_args.split": fold,
            "data.init_args.seed": seed,
            "seed_everything": seed,
            "trainer.default_root_dir": self.folder(fold, seed),
        }
        settings = [*self.overrides, *(f"{key}={value}" for key, value in own.items())]
        return ["fit", "--config", str(self.config), *(f"--{setting}" for setting in settings)]


def build_parser() -> ArgumentParser:
    """The options of `span crossval`."""
    parser = ArgumentParser(prog="span crossval", description=DESCRIPTION)
    add = parser.add_argument
    add("--config", type=Path, required=True, help="YAML file of `lightning fit`")
    add("--output", type=Path, help="folder of the runs (default: trainer.default_root_dir with -crossval)")
    add("--folds", type=str, nargs="+", help="columns of the cohort table (default: all called fold_* or split_*)")
    add("--seeds", type=int, nargs="+", default=[0], help="a run of every fold for each seed (default: 0)")
    add("--set", type=str, nargs="+", default=[], help="settings as KEY=VALUE, for example trainer.max_epochs=30")
    add("--task-index", type=int, help="do only this run, counted from 0: for a job array; without a summary")
    add("--count", action="store_true", help="print the number of runs and do nothing")
    add("--summarise", action="store_true", help="only write the summary of the runs that are finished")
    add("--dry-run", action="store_true", help="print the command of every run and do nothing")
    add("--resamples", type=int, default=2000, help="patient-level bootstrap drawings of the pooled figures")
    return parser


def run(args: Namespace) -> int:
    """Trains and summarises; 0 when every run is finished, 1 otherwise.

    Raises:
        SpanError: bad input.
    """
    with noted():
        plan = read_plan(args)
        if args.count:
            print(len(plan.runs))
            return 0
        if args.dry_run:
            for fold, seed in plan.runs:
                print(subprocess.list2cmdline(["span", *plan.command(fold, seed)]))
            return 0
        if not args.summarise:
            _remember(plan)
            if args.task_index is not None:
                return _one(plan, args.task_index)
            if code := _all(plan):
                return code
        from span_sparse.cli.crossval_summary import summarise

        return summarise(plan, resamples=args.resamples)


def read_plan(args: Namespace) -> Plan:
    """What the options ask for, checked against configuration and cohort table.

    Raises:
        ConfigError: the configuration names no cohort table, or options contradict it.
        CohortError: the table has no such fold.
    """
    from span_sparse.cohort import read_cohort
    from span_sparse.errors import ConfigError

    overrides = tuple(args.set)
    malformed = [text for text in overrides if not re.match(r"[\w.]+=", text)]
    if malformed:
        raise ConfigError(f"--set {malformed[0]!r}: expected KEY=VALUE, for example trainer.max_epochs=30")
    content = _load(args.config)
    for key in ("data.init_args.split", "data.init_args.seed", "seed_everything", "trainer.default_root_dir"):
        if any(text.startswith(f"{key}=") for text in overrides):
            raise ConfigError(f"--set {key}: every run has its own; use --folds, --seeds and --output")
    cohort_path = _setting(content, overrides, "data.init_args.cohort")
    if not isinstance(cohort_path, str):
        raise ConfigError(
            f"{args.config}: data.init_args.cohort names no table, whose columns are the folds; use the data block of "
            "span_sparse.datasets.datamodule.SlideDataModule"
        )
    cohort = read_cohort(Path(cohort_path))
    folds = _folds(cohort, args.folds)
    seeds = tuple(dict.fromkeys(args.seeds))
    output = args.output or Path(f"{_setting(content, (), 'trainer.default_root_dir') or 'runs/default'}-crossval")
    return Plan(args.config, overrides, output, folds, seeds, cohort)


def is_finished(plan: Plan, fold: str, seed: int) -> bool:
    """Whether a run is complete and of today's split.

    Raises:
        ConfigError: it was trained on another split.
    """
    from span_sparse.cli.run_summary import FINISHED, read_run
    from span_sparse.datasets.splits import column_hash
    from span_sparse.errors import ConfigError

    folder = plan.folder(fold, seed)
    found = read_run(folder)
    if found.status != FINISHED:
        return False
    expected = column_hash(plan.cohort, fold)
    if found.split_hash != expected:
        raise ConfigError(
            f"{folder} was trained on another split than column {fold!r} of {plan.cohort.path} holds now ("
            f"{found.split_hash or 'unknown'}, expected {expected}); delete the folder, or use another --output"
        )
    return True


def _load(config: Path) -> Any:
    import yaml

    from span_sparse.errors import ConfigError

    try:
        return yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{config} cannot be read as YAML: {' '.join(str(error).split())[:200]}") from error


def _setting(content: Any, overrides: Sequence[str], key: str) -> Any:
    """A setting with a dotted name; None where there is none."""
    given = [text.removeprefix(f"{key}=") for text in overrides if text.startswith(f"{key}=")]
    if given:
        return given[-1]
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def _folds(cohort: CohortTable, asked: list[str] | None) -> tuple[str, ...]:
    from span_sparse.errors import CohortError

    columns = [str(name) for name in cohort.frame.columns]
    folds = tuple(dict.fromkeys(asked or [name for name in columns if FOLD_COLUMN.fullmatch(name)]))
    if not folds:
        raise CohortError(
            f"{cohort.path}: there are no columns called fold_* or split_*; `span splits make` writes a table with "
            "them, or name columns with --folds"
        )
    for fold in folds:
        if not re.fullmatch(r"\w[\w.-]*", fold):
            raise CohortError(f"{cohort.path}: column {fold!r} cannot name a folder; rename it, for example to fold_0")
        cohort.splits(fold)  # refuses what is not there or holds something else
    return folds


def _remember(plan: Plan) -> None:
    """Notes the settings of the runs in their folder, or refuses to mix them with runs of other settings."""
    from span_sparse.cli.run_files import read_json
    from span_sparse.errors import ConfigError
    from span_sparse.files import write_atomically

    path = plan.output / PLAN_FILE
    content = json.dumps(_load(plan.config), sort_keys=True, default=str)
    settings = {"settings_sha256": hashlib.sha256(content.encode()).hexdigest(), "set": list(plan.overrides)}
    earlier = read_json(path)
    if earlier and {key: earlier.get(key) for key in settings} != settings:
        raise ConfigError(
            f"{plan.output} holds runs of other settings ({earlier.get('config')} has changed, or --set is another); "
            "use another --output, or delete the folder"
        )
    if not earlier:
        text = json.dumps({"config": str(plan.config), **settings}, indent=2)
        write_atomically(path, f"{text}\n".encode())


def _one(plan: Plan, index: int) -> int:
    """Trains a run in this process."""
    from span_sparse.errors import ConfigError

    if not 0 <= index < len(plan.runs):
        raise ConfigError(f"--task-index {index}: there are {len(plan.runs)} runs, expected 0 to {len(plan.runs) - 1}")
    fold, seed = plan.runs[index]
    if is_finished(plan, fold, seed):
        print(f"{plan.folder(fold, seed)} is finished")
        return 0
    from span_sparse.cli.fit import main

    words = plan.command(fold, seed)
    sys.argv[1:] = words  # what the processes of a DDP training are started with, and what the run says of itself
    return main(words)


def _all(plan: Plan) -> int:
    """Trains what is not finished, one run after the other; not 0 when a signal stopped it."""
    from span_sparse.cli.run_summary import read_run

    todo = [pair for pair in plan.runs if not is_finished(plan, *pair)]
    print(f"{len(plan.runs)} runs ({len(plan.folds)} folds, {len(plan.seeds)} seeds) in {plan.output}", end="")
    print(f", {len(plan.runs) - len(todo)} of them finished" if len(todo) < len(plan.runs) else "", flush=True)
    for number, (fold, seed) in enumerate(todo, start=1):
        folder = plan.folder(fold, seed)
        print(f"[{number}/{len(todo)}] {folder.name}: ", end="", flush=True)
        code = _train(plan, fold, seed)
        found = read_run(folder)
        if found.status == "finished":
            name = found.headline or ""
            print(f"test {name} {found.test[name]:.3f}" if name in found.test else "finished", flush=True)
        else:
            print(f"{_reason(folder, code)}; see {folder / LOG_FILE}", flush=True)
        if requested():
            print("stopped by a signal; the same command goes on", file=sys.stderr)
            return code and 128 + requested()
    return 0


def _train(plan: Plan, fold: str, seed: int) -> int:
    """Trains a run in a process of its own, with its output in `log.txt`; its exit code."""
    folder = plan.folder(fold, seed)
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "span_sparse", *plan.command(fold, seed)]
    with (folder / LOG_FILE).open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        told = 0
        while True:
            try:
                return process.wait(_POLL_S)
            except subprocess.TimeoutExpired:
                if requested() and not told:
                    told = requested()
                    process.send_signal(told)
            except KeyboardInterrupt:  # the terminal told the process too
                process.wait()
                raise


def _reason(folder: Path, code: int) -> str:
    """Why a run is not finished: its last error, or its exit code."""
    lines = (folder / LOG_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    return errors[-1].removeprefix("error: ") if errors else f"not finished, exit code {code}"
