"""How does an evaluation become one HTML file that opens anywhere, for years, and prints?

1. Figures, curves and remarks of every split are computed from `predictions.csv` (`sections.py`).
2. The most wrong slides come first, with their heatmaps, then every slide as a row.
3. A template puts them together. Every text is escaped: ids and class names come from other people's tables. The page
   has no script, asks for nothing from anywhere, and forbids both to itself (Content-Security-Policy).

Heatmaps make a report large: only those of the most wrong slides are put in, made small, up to a limit in bytes, and
the page says how many were left out.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from span_sparse.files import write_atomically
from span_sparse.report.drawing import picture_address
from span_sparse.report.evaluation_folder import Evaluation
from span_sparse.report.heatmap_folder import HeatmapFolder
from span_sparse.report.run_facts import run_facts
from span_sparse.report.sections import split_section
from span_sparse.report.slide_errors import is_wrong, outcome_texts, slide_errors

TEMPLATES: Final = Path(__file__).parent / "templates"
DEFAULT_PICTURES: Final = 24
MAX_PICTURE_BYTES: Final = 12_000_000


@dataclass(frozen=True, slots=True)
class SlideRow:
    """A slide in the report; texts, ready to be shown."""

    anchor: str
    slide_id: str
    case_id: str
    split: str
    true: str
    predicted: str
    error: str
    is_wrong: bool
    picture: str | None


def write_report(
    path: Path,
    evaluation: Evaluation,
    heatmaps: HeatmapFolder | None = None,
    *,
    run: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    num_pictures: int = DEFAULT_PICTURES,
) -> int:
    """Write the report, whole or not at all.

    Args:
        path: HTML file to write; its folder is created.
        evaluation: what to report.
        heatmaps: pictures of the slides, where there are some.
        run: content of the training's `run.json`.
        environment: content of its `environment.json`.
        num_pictures: how many of the most wrong slides are shown.

    Returns:
        Size of the file in bytes.

    Raises:
        OSError: the file cannot be written.
    """
    content = render_report(evaluation, heatmaps, run=run, environment=environment, num_pictures=num_pictures).encode()
    write_atomically(path, content)
    return len(content)


def render_report(
    evaluation: Evaluation,
    heatmaps: HeatmapFolder | None = None,
    *,
    run: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    num_pictures: int = DEFAULT_PICTURES,
) -> str:
    """The page as text; arguments as for `write_report`."""
    about = evaluation.metrics.get("run")
    errors = slide_errors(evaluation)
    slides, worst, remarks = _slides(evaluation, errors, heatmaps, num_pictures)
    style = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))  # our own file
    template = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html")  # fmt: skip
    return template.render(
        title=f"Evaluation {evaluation.folder.resolve().name}",
        kind=evaluation.kind.replace("_", "-"),
        created=datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z"),
        style=style,
        style_hash="sha256-" + base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        facts=run_facts(about if isinstance(about, Mapping) else {}, run or {}, environment or {}),
        sections=[split_section(evaluation, split, number) for number, split in enumerate(evaluation.splits)],
        worst=worst,
        none_is_wrong=evaluation.kind == "classification" and not _any_wrong(slides, worst),
        slides=slides,
        error_word=ERROR_WORDS[evaluation.kind],
        remarks=[*remarks, *(heatmaps.remarks if heatmaps else ())],
    )


ERROR_WORDS: Final = {
    "classification": "1 − probability of the true class",
    "multi_label": "largest difference of answer and probability",
    "regression": "difference of true and predicted value",
    "survival": "share of comparable pairs in the wrong order",
    "segmentation": "1 − Dice, mean over classes",
}


def _slides(
    evaluation: Evaluation, errors: NDArray[np.float64], heatmaps: HeatmapFolder | None, num_pictures: int
) -> tuple[list[SlideRow], list[SlideRow], list[str]]:
    """All slides, by split and error; the most wrong of the first split with labels; remarks."""
    frame, outcomes, wrong = evaluation.frame, outcome_texts(evaluation), is_wrong(evaluation)
    place = {split: number for number, split in enumerate(evaluation.splits)}
    splits = np.array([place[split] for split in frame["split"]])
    order = np.lexsort((-np.nan_to_num(errors, nan=-1.0), splits))
    labelled = [row for row in order if not np.isnan(errors[row])]
    chosen = [row for row in labelled if splits[row] == splits[labelled[0]]][:num_pictures]
    pictures, remarks = _addresses(frame["slide_id"].iloc[chosen].tolist(), heatmaps)
    if len(labelled) > len(chosen):
        remarks.insert(
            0, f"{len(chosen)} of {len(labelled):,} labelled slides are shown as most wrong; all are listed."
        )
    made = {}
    for number, row in enumerate(order):
        slide = frame.iloc[row]
        made[row] = SlideRow(
            anchor=f"slide-{number}",
            slide_id=slide["slide_id"],
            case_id=slide["case_id"],
            split=slide["split"],
            true=outcomes[row][0],
            predicted=outcomes[row][1],
            error="" if np.isnan(errors[row]) else f"{errors[row]:.3f}",
            is_wrong=bool(wrong[row]),
            picture=pictures.get(slide["slide_id"]) if row in chosen else None,
        )
    return [made[row] for row in order], [made[row] for row in chosen], remarks


def _any_wrong(slides: list[SlideRow], worst: list[SlideRow]) -> bool:
    """Whether a class of the split that is shown was predicted wrongly, be it on a slide that is not shown."""
    return any(slide.is_wrong for slide in slides if worst and slide.split == worst[0].split)


def _addresses(slide_ids: list[str], heatmaps: HeatmapFolder | None) -> tuple[dict[str, str], list[str]]:
    """Heatmaps of slides as addresses, until the limit is reached; remarks on those that are not there."""
    if heatmaps is None:
        return {}, ["No heatmaps were given: `span heatmap` makes them, `span report --heatmaps DIR` shows them."]
    found: dict[str, str] = {}
    num_bytes, left_out, missing = 0, 0, 0
    for slide_id in slide_ids:
        heatmap = heatmaps.slides.get(slide_id)
        address = picture_address(heatmap.picture) if heatmap else None
        if address is None:
            missing += 1
        elif left_out or num_bytes + len(address) > MAX_PICTURE_BYTES:
            left_out += 1  # also of all that follow: a small picture of a less wrong slide must not take its place
        else:
            found[slide_id] = address
            num_bytes += len(address)
    remarks = []
    if missing:
        remarks.append(f"{missing} of the most wrong slides have no heatmap that can be shown.")
    if left_out:
        remarks.append(f"{left_out} heatmaps were left out: pictures may take {MAX_PICTURE_BYTES // 1_000_000} MB.")
    return found, remarks
