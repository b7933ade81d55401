from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from span_sparse.evaluation import parse_predictions
from span_sparse.report.evaluation_folder import Evaluation
from span_sparse.report.slide_errors import is_wrong, outcome_texts, slide_errors


def evaluation(tmp_path, kind: str, frame: pd.DataFrame) -> Evaluation:
    table = parse_predictions(frame) if kind == "classification" else None
    return Evaluation(tmp_path, kind, frame if table is None else table.frame, table, {})


def test_classes(tmp_path, tables):
    frame = tables["classification"]
    frame.loc[3, "y_true"] = ""
    found = evaluation(tmp_path, "classification", frame)
    errors = slide_errors(found)
    for row, error in zip(frame.to_dict("records"), errors, strict=True):
        assert np.isnan(error) if not row["y_true"] else error == pytest.approx(1 - row[f"prob_{row['y_true']}"])
    assert is_wrong(found).tolist() == [
        bool(t) and t != p for t, p in zip(frame["y_true"], frame["y_pred"], strict=True)
    ]
    assert outcome_texts(found)[0] == ("benign", f"{frame['y_pred'][0]} ({frame['prob_' + frame['y_pred'][0]][0]:.3f})")


def test_survival_against_all_pairs(tmp_path, tables):
    frame = tables["survival"].astype({"event": float})
    frame.loc[5, ["time", "event"]] = np.nan
    frame.loc[7, "risk"] = frame.loc[9, "risk"]
    errors = slide_errors(evaluation(tmp_path, "survival", frame))
    rows = frame.to_dict("records")
    for row, error in zip(rows, errors, strict=True):
        penalties = []
        for other in rows:
            if other["split"] != row["split"] or other["case_id"] == row["case_id"] or np.isnan(other["time"]):
                continue
            first, second = sorted((row, other), key=lambda one: one["time"])
            if first["event"] == 1 and first["time"] < second["time"]:
                penalties.append(0.5 if first["risk"] == second["risk"] else float(first["risk"] < second["risk"]))
        if np.isnan(row["time"]) or not penalties:
            assert np.isnan(error)
        else:
            assert error == pytest.approx(np.mean(penalties))


def test_other_tasks(tmp_path, tables):
    regression = tables["regression"]
    expected = (regression["y_true"] - regression["y_pred"]).abs().tolist()
    assert slide_errors(evaluation(tmp_path, "regression", regression)).tolist() == pytest.approx(expected)
    several = tables["multi_label"].astype({"true_a": float})
    several.loc[0, ["true_a", "true_b"]] = np.nan
    several.loc[1, "true_a"] = np.nan
    errors = slide_errors(evaluation(tmp_path, "multi_label", several))
    assert np.isnan(errors[0])
    assert errors[1] == pytest.approx(abs(several["true_b"][1] - several["prob_b"][1]))
    assert errors[2] == pytest.approx(max(abs(several[f"true_{x}"][2] - several[f"prob_{x}"][2]) for x in "ab"))
    masks = tables["segmentation"]
    masks.loc[0, [name for name in masks if name.endswith("_stroma")]] = 0.0
    errors = slide_errors(evaluation(tmp_path, "segmentation", masks))
    hits, false_alarms, misses = (masks[f"{kind}_tumour"][0] for kind in ("hits", "false_alarms", "misses"))
    assert errors[0] == pytest.approx(1 - 2 * hits / (2 * hits + false_alarms + misses))
