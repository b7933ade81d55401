"""Where do slides come from when a newcomer has none?

`make_demo_cohort` paints about 120 small H&E-like slides of 75 patients and writes their cohort table. The task cannot
be solved by what patches look like, only by where they lie: both classes hold the same number of the same foci,
`clustered` in a few compact groups or `scattered` one by one. A mean or an attention over patches stays at chance; a
network that sees neighbourhoods does not.

Patients come in pairs, one of each class, in the same split. The slides of a pair are made of the same pieces, the
same tissue outline, background, stain, scanner and focus nests, turned or mirrored at random, with the nests in other
places. So the classes agree not only on average but slide by slide, and forty test slides are enough to see that a
model of the composition is at chance. Whoever splits anew must keep pairs together (column `pair`): the twin of a test
slide among the training slides, with the other label, drives such models below chance.

Files appear under temporary names and `cohort.csv` comes last: an interrupted build goes on where it stopped, a
finished one is found in milliseconds. `demo.json` records what was asked for; another seed or another version of this
file replaces the slides.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from span_sparse.datasets.demo_layout import CLUSTERED, SCATTERED, Layout, lay_out, turn
from span_sparse.datasets.demo_painting import Appearance, paint, scan, write_slide
from span_sparse.errors import CohortError
from span_sparse.files import write_atomically
from span_sparse.grid import LatticeSpec

DEMO_VERSION: Final = 1
"""Raised whenever the same seed gives other slides."""

DEMO_SPEC: Final = LatticeSpec(patch_size_px=32, target_mpp=1.0)
"""The lattice in whose cells the foci are painted."""

DEMO_CLASSES: Final = (CLUSTERED, SCATTERED)
"""Values of the column `label`."""

SCANNER_MPP: Final = {"scanner-a": 1.0, "scanner-b": 0.8}
"""Micrometres per pixel of level 0: the lattice step is 32 px on one scanner, 40 px on the other."""

_COLUMNS: Final = ("slide_id", "case_id", "label", "split", "mpp", "scanner", "pair")
_PREFIX: Final = "demo-"
_LEFTOVER_SECONDS: Final = 600


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """How many patients a split holds.

    Attributes:
        split: `train`, `val` or `test`.
        pairs_two_slides: pairs of patients with two slides each.
        pairs_one_slide: pairs of patients with one slide each.
        unpaired: further patients of class `clustered`, with two slides each.
    """

    split: str
    pairs_two_slides: int
    pairs_one_slide: int
    unpaired: int = 0


DEMO_PLAN: Final = (SplitPlan("train", 10, 9, 1), SplitPlan("val", 4, 2), SplitPlan("test", 8, 4))
"""75 patients, 120 slides: 60 to train, 20 to validate, 40 to test."""


@dataclass(frozen=True, slots=True)
class DemoSlide:
    """Everything that decides one slide.

    Attributes:
        slide_id: `demo-p07-1`.
        case_id: `demo-p07`.
        label: one of `DEMO_CLASSES`.
        split: `train`, `val` or `test`.
        scanner: key of `SCANNER_MPP`.
        appearance: stain and camera, the same for all slides of a pair of patients.
        tissue_cells: area of the tissue in cells, about.
        num_foci: number of focus cells, exactly.
        pair: `demo-q03`, the same for the two patients of a pair.
        entropy: seed of what the slides of a pair share.
        symmetry: how the slide is turned, 0 to 7.
        noise_seed: seed of the camera noise, the slide's own.
    """

    slide_id: str
    case_id: str
    label: str
    split: str
    scanner: str
    appearance: Appearance
    tissue_cells: float
    num_foci: int
    pair: str
    entropy: tuple[int, ...]
    symmetry: int
    noise_seed: int

    def foci(self) -> NDArray[np.int32]:
        """The focus cells `(row, col)` of the slide, int32 `[foci, 2]`, without painting it."""
        return self._layout().turned_foci(self.symmetry)

    def _layout(self) -> Layout:
        return lay_out(self.label, self.tissue_cells, self.num_foci, np.random.default_rng((*self.entropy, 0)))

    def write(self, slides_dir: Path) -> None:
        """Paint the slide and write `slides_dir/<slide_id>.tiff`."""
        step_px0 = DEMO_SPEC.on_slide(self.appearance.mpp).step_px0
        light = paint(self._layout(), self.appearance, step_px0, np.random.default_rng((*self.entropy, 1)))
        noise = np.random.default_rng((*self.entropy, 2, self.noise_seed))
        picture = scan(turn(light, self.symmetry), self.appearance, noise)
        write_slide(slides_dir / f"{self.slide_id}.tiff", picture, self.appearance.mpp)


def make_demo_cohort(
    root: Path,
    *,
    seed: int = 0,
    num_processes: int = 2,
    progress: bool = True,
    plan: Sequence[SplitPlan] = DEMO_PLAN,
) -> Path:
    """Write the demo cohort, or find it finished.

    The folder then holds `slides/*.tiff`, `foci.csv` (the true focus cells, rows of `DEMO_SPEC`'s lattice) and
    `cohort.csv`; about 150 MB and half a minute on two processes.

    Args:
        root: folder to write into; created if absent.
        seed: another seed gives other slides.
        num_processes: slides painted at a time; with more than one, a calling script needs the usual
            `if __name__ == "__main__"`.
        progress: show a progress bar.
        plan: patients per split; a smaller plan for tests.

    Returns:
        Path of `cohort.csv`.

    Raises:
        CohortError: the folder holds another cohort, or cannot be written.
        ValueError: fewer than one process.
    """
    if num_processes < 1:
        raise ValueError(f"num_processes must be at least 1, got {num_processes}")
    root = Path(root)
    wanted = {"demo_version": DEMO_VERSION, "seed": seed, "plan": [asdict(part) for part in plan]}
    slides = design_cohort(seed, plan)
    slides_dir, cohort_csv = root / "slides", root / "cohort.csv"
    try:
        if _recorded(root) != wanted:
            _start_over(root, wanted)
        present = {entry.name for entry in os.scandir(slides_dir)}
        missing = [slide for slide in slides if f"{slide.slide_id}.tiff" not in present]
        if missing or not cohort_csv.exists():
            cohort_csv.unlink(missing_ok=True)
            _write_slides(missing, slides_dir, num_processes, progress)
            write_atomically(root / "foci.csv", _foci_table(slides).encode())
            write_atomically(cohort_csv, _cohort_table(slides).encode())
    except OSError as error:
        raise CohortError(
            f"{root}: the demo cohort cannot be written ({error}); name a folder you may write to, with 200 MB free"
        ) from error
    return cohort_csv


def design_cohort(seed: int, plan: Sequence[SplitPlan] = DEMO_PLAN) -> list[DemoSlide]:
    """All slides of the cohort, ordered by id; no file is touched."""
    rng = np.random.default_rng((seed, DEMO_VERSION))
    groups = [
        (part.split, labels, num_slides)
        for part in plan
        for labels, num_slides, count in (
            (DEMO_CLASSES, 2, part.pairs_two_slides),
            (DEMO_CLASSES, 1, part.pairs_one_slide),
            (DEMO_CLASSES[:1], 2, part.unpaired),
        )
        for _ in range(count)
    ]
    # Patients are numbered at random: neither class nor split can be read from an id.
    numbers = iter(rng.permutation(sum(len(labels) for _, labels, _ in groups)) + 1)
    slides: list[DemoSlide] = []
    for index, (split, labels, num_slides) in enumerate(groups):
        scanner = sorted(SCANNER_MPP)[index % len(SCANNER_MPP)]
        appearance = _draw_appearance(SCANNER_MPP[scanner], rng)
        amounts = [(float(rng.uniform(380, 580)), int(rng.integers(24, 41))) for _ in range(num_slides)]
        for label in labels:
            number = int(next(numbers))
            case_id = f"{_PREFIX}p{number:02d}"
            for serial, (tissue_cells, num_foci) in enumerate(amounts, start=1):
                slides.append(
                    DemoSlide(
                        slide_id=f"{case_id}-{serial}",
                        case_id=case_id,
                        label=label,
                        split=split,
                        scanner=scanner,
                        appearance=appearance,
                        tissue_cells=tissue_cells,
                        num_foci=num_foci,
                        pair=f"{_PREFIX}q{index + 1:02d}",
                        entropy=(seed, DEMO_VERSION, index, serial),
                        symmetry=int(rng.integers(8)),
                        noise_seed=number,
                    )
                )
    return sorted(slides, key=lambda slide: slide.slide_id)


def _draw_appearance(mpp: float, rng: np.random.Generator) -> Appearance:
    def vary(vector: tuple[float, float, float]) -> tuple[float, float, float]:
        red, green, blue = (value * float(rng.uniform(0.9, 1.1)) for value in vector)
        return red, green, blue

    glass = float(rng.uniform(234, 246))
    return Appearance(
        mpp=mpp,
        hematoxylin=float(rng.uniform(0.8, 1.25)),
        eosin=float(rng.uniform(0.8, 1.25)),
        hematoxylin_rgb=vary((0.65, 0.70, 0.29)),
        eosin_rgb=vary((0.10, 0.92, 0.34)),
        white=(glass + float(rng.uniform(-2, 2)), glass, glass + float(rng.uniform(-2, 2))),
        noise=float(rng.uniform(1.0, 2.5)),
    )


def _recorded(root: Path) -> dict[str, Any] | None:
    """What `demo.json` says this folder holds; None for a folder that is not in use."""
    marker = root / "demo.json"
    try:
        return json.loads(marker.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (root / "cohort.csv").exists() or (root / "slides").exists():
            raise CohortError(
                f"{root}: holds a cohort that is not the demo (no demo.json); name another folder for the demo"
            ) from None
        return None
    except ValueError as error:
        raise CohortError(f"{marker}: not readable as JSON ({error}); delete the folder of the demo cohort") from None


def _start_over(root: Path, wanted: dict[str, Any]) -> None:
    slides_dir = root / "slides"
    (root / "cohort.csv").unlink(missing_ok=True)
    for stale in slides_dir.glob(f"{_PREFIX}p*.tiff"):
        stale.unlink()
    root.mkdir(parents=True, exist_ok=True)
    write_atomically(root / "demo.json", (json.dumps(wanted, indent=2) + "\n").encode())
    slides_dir.mkdir(exist_ok=True)


def _write_slides(slides: list[DemoSlide], slides_dir: Path, num_processes: int, progress: bool) -> None:
    for leftover in slides_dir.glob(f".{_PREFIX}*.tmp"):
        # Of a killed build; a younger one may be another process at work on the same cohort.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - leftover.stat().st_mtime > _LEFTOVER_SECONDS:
                leftover.unlink()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, disable=not progress) as bar:
        task = bar.add_task("Painting the demo cohort", total=len(slides))
        for _ in _each_written(slides, slides_dir, num_processes):
            bar.advance(task)


def _each_written(slides: list[DemoSlide], slides_dir: Path, num_processes: int) -> Iterable[None]:
    num_processes = min(num_processes, len(slides))
    write: Callable[[DemoSlide], None] = _Write(slides_dir)
    if num_processes < 2:
        yield from map(write, slides)
        return
    # Fresh processes: a copy of one that has started threads (torch, OpenMP) may hang.
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(write, slides)


@dataclass(frozen=True, slots=True)
class _Write:
    slides_dir: Path

    def __call__(self, slide: DemoSlide) -> None:
        slide.write(self.slides_dir)


def _cohort_table(slides: list[DemoSlide]) -> str:
    rows = (
        (slide.slide_id, slide.case_id, slide.label, slide.split, slide.appearance.mpp, slide.scanner, slide.pair)
        for slide in slides
    )
    return _as_csv(_COLUMNS, rows)


def _foci_table(slides: list[DemoSlide]) -> str:
    rows = ((slide.slide_id, int(row), int(col)) for slide in slides for row, col in slide.foci())
    return _as_csv(("slide_id", "row", "col"), rows)


def _as_csv(columns: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue()
