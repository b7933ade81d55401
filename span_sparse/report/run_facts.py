"""What was run? The facts a reader needs before any figure: which weights, features, cohort, split rule and software.

Taken from the entry `run` of `metrics.json` and from `run.json` and `environment.json` of the run folder that the
checkpoint lies in. What nobody wrote down is not there: a report must not guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

Facts = list[tuple[str, str]]
MAX_LENGTH: Final = 600


def run_facts(
    about: Mapping[str, Any], run: Mapping[str, Any], environment: Mapping[str, Any]
) -> list[tuple[str, Facts]]:
    """Titled lists of facts; without empty ones.

    Args:
        about: entry `run` of `metrics.json`.
        run: content of `run.json`, empty when there is none.
        environment: content of `environment.json`, empty when there is none.
    """
    data, selection = _mapping(run, "data"), _mapping(run, "selection")
    store = _mapping(data, "store")
    git, packages, devices = (
        _mapping(run, "git"), _mapping(environment, "packages"), _mapping(environment, "devices"),
    )  # fmt: skip
    training: list[tuple[str, object]] = [
        ("task", run.get("task")), ("model", run.get("model")), ("network", run.get("network")),
        ("weights chosen by", selection.get("selected_by")), ("epoch", selection.get("best_epoch")),
        ("seed", run.get("seed")), ("started", run.get("started")), ("ended", run.get("ended")),
        ("status", run.get("status")), ("command", run.get("command")),
    ]  # fmt: skip
    cohort: list[tuple[str, object]] = [
        ("cohort", data.get("cohort")), ("split column", data.get("split")), ("split hash", data.get("split_hash")),
        *((f"slides, {name}", count) for name, count in _mapping(data, "num_slides").items()),
    ]  # fmt: skip
    software: list[tuple[str, object]] = [
        ("span-sparse", packages.get("span-sparse")), ("torch", packages.get("torch")),
        ("Python", environment.get("python")), ("platform", environment.get("platform")),
        ("devices", ", ".join(map(str, devices.get("gpus") or [])) or devices.get("accelerator")),
        ("code", f"{git['revision']}{' with changes' if git.get('dirty') else ''}" if git.get("revision") else None),
    ]  # fmt: skip
    titled = [
        ("Evaluation", list(_flat(about))),
        ("Encoder", list(_flat(_mapping(store, "encoder")))),
        ("Lattice", list(_flat(_mapping(store, "lattice")))),
        ("Training cohort and split", cohort),
        ("Training", training),
        ("Software of the training", software),
    ]
    shown = [(title, [(name, _text(value)) for name, value in facts if _text(value)]) for title, facts in titled]
    return [(title, facts) for title, facts in shown if facts]


def _mapping(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = content.get(key)
    return value if isinstance(value, Mapping) else {}


def _flat(content: Mapping[str, Any], before: str = "", depth: int = 0) -> Iterator[tuple[str, object]]:
    for key, value in content.items():
        name = f"{before}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping) and depth < 3:
            yield from _flat(value, f"{name}: ", depth + 1)
        elif isinstance(value, list) and depth < 3 and any(isinstance(one, Mapping) for one in value):
            numbered = {str(number): one for number, one in enumerate(value, start=1)}
            yield from _flat(numbered, f"{name} ", depth + 1)
        else:
            yield name, value


def _text(value: object) -> str:
    if value is None or value == "":
        return ""
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= MAX_LENGTH else text[: MAX_LENGTH - 1] + "…"
