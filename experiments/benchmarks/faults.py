"""What is left of an extraction that is killed at a random moment, and does the next one make it whole?

1. A cohort of tiny slides is extracted undisturbed: the reference, and the duration.
2. For each kill the extraction starts anew in an empty folder, in a process group of its own, in one of three modes in
   turn: in one process, with two readers that encode, with two readers and an encoder on a (simulated) device. At a
   random moment it gets SIGKILL, SIGTERM or SIGKILL to the whole group, or one of its readers gets SIGKILL.
3. What it left must be valid but for leftovers under temporary names, and no process may live on.
4. The same extraction runs again. The store must then hold every slide once and be the reference byte for byte, as
   must the pictures; the process list must have one row `done` for every slide.

`lost`: slides missing after the second run. `doubled`: slides, rows or leftovers too many. `differing`: slides whose
files are not the reference's, before or after the second run, and stores that are not valid. `orphans`: processes that
lived on. `wrong_exits`: exit codes that do not say what happened. All must be 0.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import platform
import random
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from span_sparse.cohort import read_cohort
from span_sparse.extract import StainTextureEncoder, extract_cohort
from span_sparse.extract.process_list import DONE, process_list_path, read_process_list
from span_sparse.grid import LatticeSpec
from span_sparse.store import FeatureStore, validate_store
from span_sparse.store.naming import group_name
from span_sparse.version import package_version

NUM_SLIDES, EDGE_PX, PATCH_PX, BATCH_SIZE = 8, 576, 32, 40
SLIDE_IDS = [f"s{index}" for index in range(NUM_SLIDES)]
GROUP = signal.SIGKILL + 1000
"""Stands for SIGKILL to all processes at once."""
READER = signal.SIGKILL + 2000
"""Stands for SIGKILL to one reader; the run goes on."""
ACTIONS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGKILL group": GROUP, "SIGKILL reader": READER}
WEIGHTS = (5, 2, 2, 1)


@dataclass(frozen=True)
class SimulatedDevice(StainTextureEncoder):
    """The embedded encoder as if it sat on a device that one process must own."""

    device: str = "simulated"


MODES = {"one process": (0, StainTextureEncoder), "readers": (2, StainTextureEncoder), "device": (2, SimulatedDevice)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), options.kills, random.Random(options.seed))
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json:
        temporary = options.json.with_name(f".{options.json.name}.tmp")
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(options.json)


def measure(root: Path, num_kills: int, choices: random.Random) -> dict[str, Any]:
    """All figures."""
    make_cohort(root)
    start_s = time.monotonic()
    modes = list(MODES)[:num_kills]
    duration_of(root, modes[0])  # loads the modules once for all
    durations_s = {mode: duration_of(root, mode) for mode in modes}
    reference = contents(root / "reference" / "store")
    counts: collections.Counter[str] = collections.Counter()
    kinds: collections.Counter[str] = collections.Counter()
    complete: collections.Counter[int] = collections.Counter()
    for number in range(num_kills):
        mode = modes[number % len(modes)]
        action = choices.choices(list(ACTIONS), WEIGHTS)[0]
        if action == "SIGKILL reader" and mode == "one process":
            action = "SIGKILL"
        folder = root / "killed"
        folder.mkdir()
        counts += kill_once(root, folder / "store", mode, action, choices.uniform(0, durations_s[mode]), complete)
        counts += after_kill(folder / "store", reference)
        counts += after_resume(root, folder / "store", reference)
        kinds[f"{mode}: {action}"] += 1
        shutil.rmtree(folder)
    return {
        **{name: counts[name] for name in ("lost", "doubled", "differing")},
        "kills": num_kills,
        **{name: counts[name] for name in ("orphans", "wrong_exits")},
        "complete_slides_at_the_kill": {str(key): value for key, value in sorted(complete.items())},
        "kinds": dict(sorted(kinds.items())),
        "undisturbed_s": {mode: round(seconds, 2) for mode, seconds in durations_s.items()},
        "minutes": round((time.monotonic() - start_s) / 60, 1),
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "versions": {
            "python": platform.python_version(),
            **{name: package_version(name) for name in ("span-sparse", "numpy", "zarr", "openslide-python")},
        },
    }


def make_cohort(root: Path) -> None:
    """Slides of coloured noise, 18 × 18 patches each."""
    (root / "slides").mkdir()
    for index, slide_id in enumerate(SLIDE_IDS):
        noise = np.random.default_rng(index).integers(60, 200, (EDGE_PX // 8, EDGE_PX // 8, 3), dtype=np.uint8)
        picture = np.kron(noise, np.ones((8, 8, 1), np.uint8))
        picture[..., 0] = 230
        tifffile.imwrite(
            root / "slides" / f"{slide_id}.tiff", picture, tile=(64, 64), photometric="rgb", compression="zlib",
            resolution=(10_000, 10_000), resolutionunit="CENTIMETER",
        )  # fmt: skip
    (root / "cohort.csv").write_text("\n".join(["slide_id", *SLIDE_IDS]) + "\n")


def extract(root: Path, store: Path, mode: str) -> bool:
    """The extraction; whether all slides are done."""
    workers, encoder = MODES[mode]
    statuses = extract_cohort(
        read_cohort(root / "cohort.csv"), root / "slides", store, spec=LatticeSpec(PATCH_PX, 1.0),
        encoder=encoder(PATCH_PX, 1.0), workers=workers, batch_size=BATCH_SIZE,
    )  # fmt: skip
    return all(status.status == DONE for status in statuses)


def victim(root: Path, store: Path, mode: str) -> None:
    """Body of the process that is killed."""
    os.setsid()
    os.nice(1)
    raise SystemExit(0 if extract(root, store, mode) else 1)


def start(root: Path, store: Path, mode: str) -> Any:
    """The extraction in a process that has all modules loaded, so that no kill is wasted on imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["span_sparse.extract.pipeline", "tifffile"])
    process = context.Process(target=victim, args=(root, store, mode))
    process.start()
    return process


def duration_of(root: Path, mode: str) -> float:
    """Seconds of an undisturbed run; the last one is kept as the reference."""
    shutil.rmtree(root / "reference", ignore_errors=True)
    begin_s = time.monotonic()
    process = start(root, root / "reference" / "store", mode)
    process.join()
    assert process.exitcode == 0, f"the undisturbed run failed: {process.exitcode}"
    return time.monotonic() - begin_s


def kill_once(
    root: Path, store: Path, mode: str, action: str, delay_s: float, complete: collections.Counter[int]
) -> collections.Counter[str]:
    """Start, wait, kill, and wait for all its processes to end."""
    process = start(root, store, mode)
    time.sleep(delay_s)
    number = ACTIONS[action]
    try:
        if number == GROUP:
            os.killpg(process.pid, signal.SIGKILL)
        elif number == READER:
            readers = [pid for pid in group_of(process.pid) if pid != process.pid]
            os.kill(random.choice(readers) if readers else process.pid, signal.SIGKILL)
        else:
            os.kill(process.pid, number)
    except ProcessLookupError:  # it had finished, or had not made its group yet
        process.kill()
    process.join(60)
    counts: collections.Counter[str] = collections.Counter()
    allowed = {"SIGTERM": {0, 143, -signal.SIGTERM}, "SIGKILL reader": {0, 1, -9}}.get(action, {0, -9})
    counts["wrong_exits"] += process.exitcode not in allowed
    deadline_s = time.monotonic() + 10
    while (left := group_of(process.pid)) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    counts["orphans"] += len(left)
    complete[len(FeatureStore(store).slide_ids) if (store / "zarr.json").exists() else 0] += 1
    return counts


def group_of(leader: int) -> list[int]:
    """Living processes of a group (Linux)."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == leader and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def after_kill(store: Path, reference: dict[str, dict[str, bytes]]) -> collections.Counter[str]:
    """What the killed run left: whole slides, whole lists."""
    counts: collections.Counter[str] = collections.Counter()
    if (store / "zarr.json").exists():
        counts["differing"] += sum("killed writer" not in problem.message for problem in validate_store(store))
        found = contents(store)
        counts["differing"] += sum(found[slide_id] != reference[slide_id] for slide_id in FeatureStore(store).slide_ids)
    rows = read_process_list(process_list_path(store))
    counts["doubled"] += len(rows) - len({row.slide_id for row in rows})
    in_store = FeatureStore(store).slide_ids if rows else ()
    counts["lost"] += sum(row.status == DONE and row.slide_id not in in_store for row in rows)
    return counts


def after_resume(root: Path, store: Path, reference: dict[str, dict[str, bytes]]) -> collections.Counter[str]:
    """The second run, and what there is then."""
    counts: collections.Counter[str] = collections.Counter()
    extract(root, store, "one process")
    counts["differing"] += len(validate_store(store))
    found = contents(store)
    counts["lost"] += len(reference.keys() - found.keys())
    counts["doubled"] += len(found.keys() - reference.keys()) + len(list(store.glob("__tmp-*")))
    counts["differing"] += sum(found[slide_id] != reference[slide_id] for slide_id in reference.keys() & found.keys())
    rows = [(row.slide_id, row.status) for row in read_process_list(process_list_path(store))]
    counts["lost"] += len({(slide_id, DONE) for slide_id in SLIDE_IDS} - set(rows))
    counts["doubled"] += len(rows) - len(set(rows))
    return counts


def contents(store: Path) -> dict[str, dict[str, bytes]]:
    """Bytes of every file of each slide, in the store and beside it."""
    names = {group_name(slide_id): slide_id for slide_id in FeatureStore(store).slide_ids}
    found: dict[str, dict[str, bytes]] = {slide_id: {} for slide_id in names.values()}
    for folder in (store, *store.parent.glob(f"{store.name}.*")):
        for path in folder.rglob("*") if folder.is_dir() else ():
            first = path.relative_to(folder).parts[0]
            slide_id = names.get(first) or names.get(Path(first).stem)
            if path.is_file() and slide_id is not None:
                found[slide_id][str(path.relative_to(store.parent))] = path.read_bytes()
    return found


if __name__ == "__main__":
    main()
