"""Which script do I give to sbatch? And how does a job come back that was told to stop?

`span slurm train --nodes 2 --processes-per-node 4 -- --config my.yaml` prints a job script: the resources, and the
command with everything after `--`. `experiments/slurm/` holds one of each kind as printed here.

Easy to get wrong by hand, and right in them: a task a GPU and `srun` (without it Lightning starts one process and waits
for the others for ever); `--kill-on-bad-exit` (a dead process leaves the others waiting); a signal before the time
limit, `--requeue` and `--open-mode=append` (a stopped job comes back, goes on, and keeps its log); `--cpus-per-task`
given to srun again, which does not take it from sbatch any more.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

from jsonargparse import ArgumentParser, Namespace

DESCRIPTION = "Print a SLURM job script for extract, train, crossval or evaluate."

EXIT_TERMINATED: Final = 143

_ABOUT: Final = {
    "extract": "Extracts the features of a cohort, a part of it in every job of the array.",
    "train": "Trains; told to stop, it writes a checkpoint, comes back and goes on there.",
    "crossval": "Trains one fold and seed in every job of the array; told to stop, each comes back and goes on.",
    "evaluate": "Applies a checkpoint to a cohort.",
}
_DIRECTIVES: Final = ("job_name", "partition", "account", "mem", "time")
_SIGNALS: Final = {"extract": "TERM", "train": "USR1", "crossval": "USR1"}
"""Kinds that go on where they stopped, and what tells them to stop."""
_ARRAYS: Final = {"extract": 1, "crossval": 0}
"""Kinds that are arrays, and the number of their first job."""


class JobParser(ArgumentParser):
    """A parser that keeps everything after `--` as `words`."""

    def parse_args(self, args: Sequence[str] | None = None, *arguments: Any, **settings: Any) -> Namespace:
        """Parses what is before `--`."""
        given = list(sys.argv[1:] if args is None else args)
        end = given.index("--") if "--" in given else len(given)
        found = super().parse_args(given[:end], *arguments, **settings)
        found["words"] = given[end + 1 :]
        return found


def build_parser() -> ArgumentParser:
    """The options of `span slurm`."""
    usage = "span slurm {extract,train,crossval,evaluate} [options] -- [options of the command]"
    parser = JobParser(prog="span slurm", usage=usage, description=DESCRIPTION)
    add = parser.add_argument
    add(
        "kind",
        type=Literal["extract", "train", "crossval", "evaluate", "requeue"],
        help="job to write; `requeue -- CODE`, in a job script: start the job again if its command ended with 143",
    )
    add("--nodes", type=int, default=1, help="train: number of nodes")
    add("--processes-per-node", type=int, default=1, help="train: processes of a node, each with a GPU")
    add("--jobs", type=int | None, default=None, help="extract, crossval: number of jobs of the array")
    add("--at-once", type=int | None, default=None, help="extract, crossval: jobs of the array that run at a time")
    add("--cpu", action="store_true", help="without GPUs")
    add("--cpus-per-task", type=int, default=8, help="CPUs of a process")
    add("--mem", type=str, default="64G", help="memory of a node")
    add("--time", type=str, default="24:00:00", help="limit; a training goes on in the next one")
    add("--warning", type=int, default=300, help="seconds before the limit: more than one validation, or slide, takes")
    add("--partition", type=str | None, default=None, help="partition")
    add("--account", type=str | None, default=None, help="account")
    add("--job-name", type=str | None, default=None, help="name (default: span-KIND)")
    add("--directive", type=list[str], default=[], help="further options of sbatch, such as '[--constraint=a100]'")
    add("--setup", type=list[str], default=[], help="lines before the command, such as '[source .venv/bin/activate]'")
    add("--output", type=Path | None, default=None, help="file to write (default: print)")
    add("--overwrite", action="store_true", help="replace the file")
    return parser


def run(args: Namespace) -> int:
    """Print or write the script; 0. For `requeue`: 0 if the job comes back, otherwise its command's exit code.

    Raises:
        ConfigError: an option that the kind does not have, or a file that is there.
    """
    from span_sparse.errors import ConfigError
    from span_sparse.files import write_atomically

    if args.kind == "requeue":
        return _requeue(args.words)
    script = job_script(args)
    if args.output is None:
        print(script, end="")
        return 0
    if args.output.exists() and not args.overwrite:
        raise ConfigError(f"{args.output}: is there already; give another --output, or --overwrite")
    write_atomically(args.output, script.encode())
    print(f"sbatch {shlex.quote(str(args.output))}")
    return 0


def job_script(args: Namespace) -> str:
    """The script for the options of `build_parser`.

    Raises:
        ConfigError: an option that the kind does not have, or is missing.
    """
    _check(args)
    lines = ["#!/bin/bash", f"# {_ABOUT[args.kind]}", *_how_to_submit(args)]
    lines += [f"#SBATCH {directive}" for directive in _directives(args)]
    lines += ["", "set -euo pipefail", *args.setup, ""]
    lines += ['srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \\', f"    {_command(args)}"]
    return "\n".join(lines) + "\n"


def _check(args: Namespace) -> None:
    from span_sparse.errors import ConfigError

    if args.kind != "train" and (args.nodes, args.processes_per_node) != (1, 1):
        raise ConfigError(f"span slurm {args.kind} has no --nodes and --processes-per-node: each job is one process")
    if args.kind not in _ARRAYS and (args.jobs is not None or args.at_once is not None):
        raise ConfigError(f"span slurm {args.kind} is one job, without --jobs and --at-once")
    if args.kind in _ARRAYS and args.jobs is None:
        each = "parts of the cohort" if args.kind == "extract" else "folds × seeds"
        raise ConfigError(f"span slurm {args.kind} needs --jobs, the number of {each}")
    for name in ("nodes", "processes_per_node", "jobs", "at_once", "cpus_per_task", "warning"):
        if args[name] is not None and args[name] < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {args[name]}, expected at least 1")
    for text in (*(args[name] or "" for name in _DIRECTIVES), *args.directive, *args.setup):
        if "\n" in text:
            raise ConfigError(f"{text!r}: expected one line")


def _how_to_submit(args: Namespace) -> list[str]:
    name = shlex.quote(str(args.output)) if args.output else f"{args.kind}.sbatch"
    if args.kind != "crossval":
        return [f"#   sbatch {name}"]
    return [
        f"#   job=$(sbatch --parsable {name})",
        f'#   sbatch --dependency=afterok:$job --wrap "span crossval --summarise {shlex.join(args.words)}"',
    ]


def _directives(args: Namespace) -> list[str]:
    values = {name: args[name] for name in _DIRECTIVES} | {"job_name": args.job_name or f"span-{args.kind}"}
    found = [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None]
    found += [f"--nodes={args.nodes}", f"--ntasks-per-node={args.processes_per_node}"]
    if not args.cpu:
        found.append(f"--gpus-per-node={args.processes_per_node}")
    found.append(f"--cpus-per-task={args.cpus_per_task}")
    if args.kind in _ARRAYS:
        first = _ARRAYS[args.kind]
        found.append(f"--array={first}-{first + args.jobs - 1}" + (f"%{args.at_once}" if args.at_once else ""))
    if args.kind in _SIGNALS:
        found.append(f"--signal={_SIGNALS[args.kind]}@{args.warning}")
    found += ["--requeue", "--open-mode=append"]
    found.append(f"--output=%x-{'%A_%a' if args.kind in _ARRAYS else '%j'}.log")
    return found + args.directive


def _command(args: Namespace) -> str:
    device = "cpu" if args.cpu else "cuda"
    words = shlex.join(args.words)
    if args.kind == "train":
        accelerator = " --trainer.accelerator=cpu" if args.cpu else ""
        processes = '--trainer.num_nodes="$SLURM_NNODES" --trainer.devices="$SLURM_NTASKS_PER_NODE"'
        return f"span fit {words} \\\n    {processes}{accelerator}"
    if args.kind == "crossval":
        return f'span crossval {words} --task-index "$SLURM_ARRAY_TASK_ID"'
    if args.kind == "extract":
        own = f'--shard slurm --workers "$SLURM_CPUS_PER_TASK" --device {device}'
        return f"span extract {words} \\\n    {own} || span slurm requeue -- $?"
    return f"span evaluate {words} --device {device}"


def _requeue(words: list[str]) -> int:
    from span_sparse.cli.requeue import requeue, slurm_job
    from span_sparse.errors import ConfigError

    if len(words) != 1 or not words[0].isdecimal():
        raise ConfigError(f"span slurm requeue: expected the exit code of the job's command, found {words}")
    code = int(words[0])
    if code != EXIT_TERMINATED:
        return code
    if reason := requeue(os.environ):
        print(f"the job does not come back: {reason}", file=sys.stderr)
        return code
    print(f"SLURM job {slurm_job(os.environ)} comes back and goes on", file=sys.stderr)
    return 0
