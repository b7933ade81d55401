"""Which slides are mine, when many jobs share a cohort?

Shard k of n gets a fixed set of slides, of about the same number of bytes for every k: the largest file first, each to
the shard with least so far. A simple `slide i to shard i mod n` gives one job all the 5 GB slides of a batch.

Jobs start hours apart, and meanwhile files arrive or finish copying. If each job counted the bytes for itself, two
could disagree, and a slide would be done twice or never. So the first job writes the assignment down, beside the store,
and the others read it; slides that came later go by a hash of their id.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from span_sparse.errors import ConfigError, StoreError
from span_sparse.extract.settings import SlideTask
from span_sparse.files import write_atomically

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shard:
    """One part of a cohort.

    Attributes:
        number: from 1 to `count`.
        count: parts.

    Raises:
        ConfigError: a number outside that range.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ConfigError(
                f"--shard {self.number}/{self.count}: shards are counted from 1, as in 1/4, 2/4, 3/4 and 4/4"
            )

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str]) -> Shard:
        """From `k/n`, or from the job's place among its siblings for `slurm`.

        Raises:
            ConfigError: neither, or SLURM does not say.
        """
        if text == "slurm":
            return _from_slurm(environment)
        number, slash, count = text.partition("/")
        if not slash or not number.isdecimal() or not count.isdecimal():
            raise ConfigError(f"--shard: expected k/n such as 2/8, or slurm, got {text!r}")
        return cls(int(number), int(count))

    @property
    def name(self) -> str:
        """For file names."""
        return f"{self.number}-of-{self.count}"


def _from_slurm(environment: Mapping[str, str]) -> Shard:
    """Position in the job array × position among the tasks of the step."""

    def read(name: str, default: int | None) -> int:
        text = environment.get(name, "" if default is None else str(default))
        if not text.isdecimal():
            raise ConfigError(f"--shard slurm: {name} is {text!r}; submit with sbatch --array=1-N, or give --shard k/n")
        return int(text)

    position, count = 0, 1
    in_step = "SLURM_STEP_NUM_TASKS" in environment and environment["SLURM_STEP_NUM_TASKS"] != "1"
    if "SLURM_ARRAY_TASK_ID" in environment or not in_step:
        task, count = read("SLURM_ARRAY_TASK_ID", None), read("SLURM_ARRAY_TASK_COUNT", None)
        first, last = read("SLURM_ARRAY_TASK_MIN", None), read("SLURM_ARRAY_TASK_MAX", None)
        step = read("SLURM_ARRAY_TASK_STEP", 1)
        if first + (count - 1) * step != last:
            raise ConfigError(
                f"--shard slurm: the array has {count} tasks between {first} and {last} (step {step}), so which part "
                "of the cohort this task has is not certain; give --shard k/n, with the n of the first submission"
            )
        position = (task - first) // step
    if in_step:
        rank, num_tasks = read("SLURM_PROCID", None), read("SLURM_STEP_NUM_TASKS", None)
        position, count = position * num_tasks + rank, count * num_tasks
    return Shard(position + 1, count)


def tasks_of_shard(tasks: list[SlideTask], shard: Shard, store: Path, *, dry_run: bool = False) -> list[SlideTask]:
    """The slides of a shard, in the cohort's order.

    Args:
        tasks: all slides of the cohort.
        shard: which part.
        store: the assignment is kept beside it, as `STORE.shards-of-N.json`.
        dry_run: read it if it is there, but do not write it.

    Raises:
        StoreError: the file of the assignment is damaged or cannot be written.
    """
    paths = {task.slide_id: task.path for task in tasks}
    mine = ids_of_shard(paths, _size, shard, assignment_path(store, shard), dry_run=dry_run)
    return [task for task in tasks if task.slide_id in mine]


def assignment_path(store: Path, shard: Shard) -> Path:
    """Where the assignment of an extraction into this store lies."""
    return store.with_name(f"{store.name}.shards-of-{shard.count}.json")


def ids_of_shard(
    slides: Mapping[str, T], size: Callable[[T], int], shard: Shard, path: Path, *, dry_run: bool = False
) -> set[str]:
    """The ids of the slides of a shard.

    Args:
        slides: all slides of the cohort by id, with what their size is told by.
        size: of a slide; asked only by the first job.
        shard: which part.
        path: file of the assignment.
        dry_run: read it if it is there, but do not write it.

    Raises:
        StoreError: the file of the assignment is damaged or cannot be written.
    """
    assigned = _read(path, shard.count)
    if assigned is None:
        assigned = _assign({slide_id: size(slide) for slide_id, slide in slides.items()}, shard.count)
        if not dry_run:
            assigned = _keep(path, assigned, shard.count)
    return {slide for slide in slides if assigned.get(slide, _hashed(slide, shard.count)) == shard.number}


def _assign(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Shard of each slide: the largest first, to the shard with least."""
    loads = [(0, 0, number) for number in range(1, count + 1)]  # sizes, slides, shard
    assigned: dict[str, int] = {}
    for size, slide_id in sorted(((size, slide_id) for slide_id, size in sizes.items()), reverse=True):
        load, slides, number = min(loads)
        loads[number - 1] = (load + size, slides + 1, number)
        assigned[slide_id] = number
    return assigned


def _size(path: Path) -> int:
    """Bytes of a slide; of a format with a folder of files beside the named one (MRXS), those too."""
    try:
        folder = path.with_suffix("")
        beside = folder.iterdir() if path.suffix and folder.is_dir() else ()
        return path.stat().st_size + sum(entry.stat().st_size for entry in beside if entry.is_file())
    except OSError:
        return 0


def _hashed(slide_id: str, count: int) -> int:
    return int.from_bytes(hashlib.sha256(slide_id.encode()).digest()[:8], "little") % count + 1


def _keep(path: Path, assigned: dict[str, int], count: int) -> dict[str, int]:
    """Write the assignment unless another job was first; what counts is what lies there afterwards."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
    try:
        write_atomically(temporary, (json.dumps(assigned, ensure_ascii=False, indent=0) + "\n").encode())
        try:
            os.link(temporary, path)  # unlike a rename, fails when the name is taken
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{path}: the assignment of slides to shards cannot be written: {error.strerror}") from error
    return _read(path, count) or assigned


def _read(path: Path, count: int) -> dict[str, int] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        values = error
    if not isinstance(values, dict) or not all(type(value) is int and 1 <= value <= count for value in values.values()):
        raise StoreError(
            f"{path}: is not an assignment of slides to {count} shards; delete it when no job of this cohort is running"
        )
    return values
