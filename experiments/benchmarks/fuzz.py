"""What does the software make of damaged inputs?

`fuzz.py --cases N` damages small good inputs (slides, feature files of every foreign format, annotations, cohort
tables, stores; see `fuzz_inputs.py`) and hands each to the commands (`span extract`, `inspect`, `import`, `annotate`,
`validate`) in worker processes with a time limit and a limit on their address space. The first cases try to lead out of
the folder given. Outcomes:

* `ok`: taken. What was written validates, and equals the undamaged where a checksum or count can tell.
* `refused`: an error for the user in one line, or a failed slide in the list of results.
* `library_signals`: OpenSlide killed the process that read the slide, and the same extraction with readers of their own
  made it a failed row.
* `crashes`: any other exception or signal. `hangs`: over the time limit. `silent`: a store that does not validate,
  other values than checksums or counts say, or something read from outside the folder. These three must be 0.

`--case K` repeats one case with the same `--seed` in this process and shows its trace.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import multiprocessing
import os
import platform
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import fuzz_inputs
import numpy as np

from span_sparse.cli import main as command_line
from span_sparse.errors import SpanError
from span_sparse.store import FeatureStore, validate_store
from span_sparse.version import package_version

BAD = ("crashes", "hangs", "silent")
IDLE = -(10**9)
DIED = "(its process ended)"
LIMIT_S, ADDRESS_SPACE_BYTES = 60.0, 4 * 2**30
"""Of one case; and what a worker may map beyond what it has mapped when it starts."""

PRELOADED = [
    "span_sparse.cli.extract", "span_sparse.cli.inspect", "span_sparse.cli.import_", "span_sparse.cli.annotate",
    "span_sparse.cli.validate", "span_sparse.extract.pipeline", "span_sparse.store.exchange",
    "span_sparse.cli.tensor_files", "span_sparse.wsi.qc_picture", "shapely", "h5py", "fuzz_inputs",
]  # fmt: skip
NUM_FOREIGN_PATCHES = 5
WEIGHTS = {"slide": 5, "features": 2, "annotations": 6, "cohort": 6, "store": 14}
SAID = (
    "--encoder-name", "uni", "--encoder-revision", "1", "--encoder-readout", "cls", "--encoder-input", "224",
    "--size-from-patches",
)  # fmt: skip
ABOUT = {
    "clam": ("--mpp", "0.25", "--target-mpp", "1.0", "--per-contour"),
    "span": ("--mpp", "0.2527", "--target-mpp", "0.5", "--patch-size", "224", "--ratio-class", "tumour"),
    "patchpreprocess": ("--mpp", "0.2631", "--target-mpp", "0.5", "--patch-size", "224"),
    "span-st": ("--mpp", "0.2527", "--target-mpp", "0.5", "--patch-size", "224"),
    "stamp": ("--mpp", "0.2527"), "slideflow": ("--mpp", "0.2527"),
    "atlaspatch": ("--mpp", "0.25", "--target-mpp", "0.5"),
    "slide2vec": ("--mpp", "0.25", "--target-mpp", "0.5", "--patch-size", "224"),
    "histossl": ("--mpp", "0.25", "--patch-size", "224"),
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What became of a case."""

    case: int
    kind: str
    mutation: str
    outcome: str
    detail: str = ""


class Fuzzer:
    """Good inputs under `root`, and the cases made of them."""

    def __init__(self, root: Path, kinds: dict[str, Path], seed: int) -> None:
        self.root, self.kinds, self.seed = root, kinds, seed
        self.weights = [WEIGHTS[kind.partition("-")[0]] for kind in kinds]

    def choose(self, case: int) -> tuple[random.Random, str, str]:
        """Random numbers, kind and trick (empty for damage) of a case; negative ones are the undamaged inputs."""
        choices = random.Random(f"{self.seed}/{case}")
        if case < 0:
            return choices, list(self.kinds)[-case - 1], ""
        if case < len(fuzz_inputs.TRICKS):
            trick, kind = list(fuzz_inputs.TRICKS.items())[case]
            return choices, kind, trick
        return choices, choices.choices(list(self.kinds), self.weights)[0], ""

    def run(self, case: int, *, workers: int = 0) -> Result:
        """Damage and hand over; raises what the command raised and was not meant for the user."""
        choices, kind, trick = self.choose(case)
        folder = Path(tempfile.mkdtemp(prefix=f"case-{case}-", dir=self.root))
        try:
            target = folder / "input"
            shutil.copytree(self.kinds[kind], target)
            mutation = trick
            if trick:
                fuzz_inputs.lead_outside(target, folder / "outside", trick)
            elif case >= 0:
                damageable = "cohort.csv" if kind == "cohort" else "*"
                victim = choices.choice(sorted(path for path in target.rglob(damageable) if path.is_file()))
                mutation = f"{victim.relative_to(target)}: {fuzz_inputs.damage(victim, choices)}"
            outcome, detail = getattr(self, f"_{kind.partition('-')[0]}")(kind, target, folder, workers)
            if trick and outcome == "ok":
                outcome, detail = "silent", "something outside the folder was taken"
            if fuzz_inputs.SECRET in detail:
                outcome = "silent"
            return Result(case, kind, mutation, outcome, detail)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _slide(self, kind: str, target: Path, folder: Path, workers: int) -> tuple[str, str]:
        (folder / "cohort.csv").write_text("slide_id\ns\n")
        mpp = {"slide-real-dicom": "30", "slide-real-svs": "8"}.get(kind, "1.0")
        outcome, detail = self._extract(folder / "cohort.csv", target, folder / "store", mpp, workers)
        slide = next(target.iterdir())
        if not workers:
            patches = ("--patch-size", fuzz_inputs.PATCH_PX, "--target-mpp", mpp)
            spoken("inspect", slide, *patches, "--output", folder / "pictures")
        return outcome, detail

    def _extract(self, cohort: Path, slides: Path, store: Path, mpp: str, workers: int) -> tuple[str, str]:
        outcome = spoken(
            "extract", "--cohort", cohort, "--slides", slides, "--store", store, "--target-mpp", mpp, "--patch-size",
            fuzz_inputs.PATCH_PX, "--workers", workers, "--allow-upsampling",
        )  # fmt: skip
        return checked(outcome, store)

    def _cohort(self, kind: str, target: Path, folder: Path, workers: int) -> tuple[str, str]:
        return self._extract(target / "cohort.csv", target, folder / "store", "1.0", workers)

    def _features(self, kind: str, target: Path, folder: Path, workers: int) -> tuple[str, str]:
        name = kind.partition("-")[2]
        words = ["import", target, "--store", folder / "store", "--format", name, *SAID, *ABOUT.get(name, ())]
        if name == "histossl":
            (folder / "cohort.csv").write_text("slide_id,width_px0,height_px0\nH1,4000,6000\n")
            words += ["--cohort", folder / "cohort.csv"]
        outcome, detail = checked(spoken(*words), folder / "store")
        if outcome == "ok":
            store = FeatureStore(folder / "store")
            if any(store.metadata(slide_id).num_patches != NUM_FOREIGN_PATCHES for slide_id in store.slide_ids):
                return "silent", "another number of patches than the file holds"
        return outcome, detail

    def _annotations(self, kind: str, target: Path, folder: Path, workers: int) -> tuple[str, str]:
        store = Path(shutil.copytree(self.root / "store", folder / "store"))
        return checked(spoken("annotate", "--store", store, "--annotations", target), store)

    def _store(self, kind: str, target: Path, folder: Path, workers: int) -> tuple[str, str]:
        outcome, detail = spoken("validate", target, "--json", folder / "findings.json")
        with contextlib.suppress(SpanError):  # every reader must say so or give what was written
            good, found = FeatureStore(self.root / "store"), FeatureStore(target)
            for slide_id in found.slide_ids:
                with contextlib.suppress(SpanError, OSError):
                    record, expected = found.read(slide_id), good.read(slide_id)
                    for array in ("features", "grid", "coords"):
                        if not np.array_equal(getattr(record, array), getattr(expected, array), equal_nan=True):
                            return "silent", f"{array} of {slide_id} have other values"
        return outcome, detail


def spoken(*words: Any) -> tuple[str, str]:
    """What `span WORDS` does: ok, or refused with the message."""
    try:
        code = command_line._span([str(word) for word in words])
    except (SpanError, OSError) as error:
        message = str(error)
        if isinstance(error, SpanError) and "\n" in message:
            raise AssertionError(f"a message of several lines: {message!r}") from error
        return "refused", message
    return ("refused", "rows of the result") if code else ("ok", "")


def checked(outcome: tuple[str, str], store: Path) -> tuple[str, str]:
    """The outcome, unless the store that is left does not validate."""
    if (store / "zarr.json").exists() and (problems := validate_store(store)):
        return "silent", f"written, but: {problems[0].message}"
    if outcome[0] == "ok" and not FeatureStore(store).slide_ids:
        return "silent", "success, and no slide in the store"
    return outcome


def work(connection: Connection, fuzzer: Fuzzer) -> None:
    """A worker's life."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    warnings.simplefilter("ignore")
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESS_SPACE_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        case, readers = connection.recv()
        try:
            result = fuzzer.run(case, workers=readers)
        except BaseException:
            result = Result(case, fuzzer.choose(case)[1], "", "crashes", traceback.format_exc()[-3000:])
        connection.send(result)


class Worker:
    """A process and the case it is on."""

    def __init__(self, fuzzer: Fuzzer) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, fuzzer))
        self.process.start()
        theirs.close()
        self.case, self.readers, self.start_s, self.start_cpu_s = IDLE, 0, 0.0, 0.0

    def give(self, case: int, readers: int = 0) -> None:
        """Start a case."""
        self.case, self.readers = case, readers
        self.start_s, self.start_cpu_s = time.monotonic(), self.cpu_s()
        self.connection.send((case, readers))

    def cpu_s(self) -> float:
        """Seconds that the process and those it has waited for have computed; 0 when it is gone (Linux)."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    def is_over(self, limit_s: float) -> bool:
        """Time of computing counts, since other programs may slow the machine down; of waiting, ten times as much."""
        return self.cpu_s() - self.start_cpu_s > limit_s or time.monotonic() - self.start_s > 10 * limit_s

    def end(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def fuzz(fuzzer: Fuzzer, cases: Sequence[int], num_workers: int, limit_s: float) -> list[Result]:
    """All cases, in order of their ends."""
    todo = collections.deque((case, 0) for case in cases)
    workers = [Worker(fuzzer) for _ in range(num_workers)]
    results: list[Result] = []
    for worker in workers[: len(todo)]:
        worker.give(*todo.popleft())
    busy = [worker for worker in workers if worker.case != IDLE]
    while busy:
        ready = wait([worker.connection for worker in busy], 1.0)
        for worker in list(busy):
            result = outcome_of(worker, fuzzer, limit_s, is_ready=worker.connection in ready)
            if result is None:
                continue
            died = result.mutation == DIED
            if (
                died
                and result.outcome == "crashes"
                and result.kind.startswith(("slide", "cohort"))
                and not worker.readers
            ):
                todo.appendleft((worker.case, 2))  # was it OpenSlide, and does a reader of its own contain it?
            else:
                results.append(result)
                tell(results, len(cases))
            busy.remove(worker)
            if died:
                worker.end()
                worker = Worker(fuzzer)
            if todo:
                worker.give(*todo.popleft())
                busy.append(worker)
            else:
                worker.end()
    for worker in workers[len(cases) :]:
        worker.end()
    return results


def outcome_of(worker: Worker, fuzzer: Fuzzer, limit_s: float, *, is_ready: bool) -> Result | None:
    """What a worker answered, or how it ended; None while it works."""
    kind = fuzzer.choose(worker.case)[1]
    if is_ready:
        try:
            result: Result = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            code = worker.process.exitcode or 0
            name = signal.Signals(-code).name if code < 0 else f"exit {code}"
            return Result(worker.case, kind, DIED, "crashes", f"the process ended with {name}")
        contained = worker.readers and result.outcome == "refused"
        return replace(result, outcome="library_signals") if contained else result
    if worker.is_over(limit_s):
        return Result(worker.case, kind, DIED, "hangs", f"over {limit_s:g} s")
    return None


def tell(results: list[Result], num_cases: int) -> None:
    """Bad cases as they come, and how far it is."""
    last = results[-1]
    if last.outcome in BAD:
        print(f"case {last.case} ({last.kind}; {last.mutation}): {last.outcome}: {last.detail}", file=sys.stderr)
    if len(results) % 100 == 0:
        print(f"{len(results)} of {num_cases} cases", file=sys.stderr, flush=True)


def figures_of(results: list[Result], seed: int, seconds: float) -> dict[str, Any]:
    """Counts by outcome, and by kind of input."""
    counts = collections.Counter(result.outcome for result in results)
    by_kind: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for result in results:
        by_kind[result.kind][result.outcome] += 1
    bad = [result for result in results if result.outcome in BAD]
    return {
        **{name: counts[name] for name in BAD},
        "cases": len(results),
        **{name: counts[name] for name in ("ok", "refused", "library_signals")},
        "seed": seed,
        "bad_cases": [{"case": one.case, "kind": one.kind, "detail": one.detail[-400:]} for one in bad],
        "kinds": {kind: dict(sorted(counter.items())) for kind, counter in sorted(by_kind.items())},
        "minutes": round(seconds / 60, 1),
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "versions": {
            "python": platform.python_version(),
            **{name: package_version(name) for name in ("span-sparse", "openslide-python", "h5py", "zarr")},
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--case", type=int, help="repeat this case here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="seconds a case may compute")
    parser.add_argument(
        "--slides", type=Path, default=fuzz_inputs.ROOT.parent / "shared" / "slides", help="real slides"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        kinds = fuzz_inputs.make_inputs(root, options.slides)
        fuzzer = Fuzzer(root, kinds | {"store": root / "store"}, options.seed)
        with Path(os.devnull).open("w") as quiet, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            (root / "cohort.csv").write_text("slide_id\ns\n")
            made = fuzzer._extract(root / "cohort.csv", kinds["slide-tiff"], root / "store", "1.0", 0)
        assert made == ("ok", ""), f"the undamaged slide cannot be extracted: {made}"
        if options.case is not None:
            print(fuzzer.run(options.case))
            return 0
        start_s = time.monotonic()
        used = {fuzzer.choose(case)[1] for case in range(options.cases)}
        undamaged = [-number for number, kind in enumerate(fuzzer.kinds, 1) if kind in used]
        whole = fuzz(fuzzer, undamaged, options.workers, options.limit_s)
        refused = [(result.kind, result.detail) for result in whole if result.outcome != "ok"]
        assert not refused, f"undamaged inputs are refused, so that nothing would be found out: {refused}"
        results = fuzz(fuzzer, range(options.cases), options.workers, options.limit_s)
        figures = figures_of(results, options.seed, time.monotonic() - start_s)
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    return int(any(figures[name] for name in BAD))


if __name__ == "__main__":
    sys.exit(main())
