from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix, roc_curve

from span_sparse.evaluation import figures
from span_sparse.evaluation.figures import confusion_figure, roc_figure, write_figure
from span_sparse.evaluation.predictions import parse_predictions
from span_sparse.evaluation.statistics import classification_metrics


def texts(axes) -> str:
    legend = axes.get_legend() or axes.figure.legends[0]
    words = [axes.get_xlabel(), axes.get_ylabel(), axes.get_title(), *(text.get_text() for text in legend.get_texts())]
    return "\n".join(words)


def test_binary_roc_shows_the_curve_its_band_and_what_it_rests_on(make_table):
    table = make_table(num_cases=20, slides_per_case=2)
    axes = roc_figure(table, title="ROC, test split", resamples=200, seed=4).axes[0]
    false_rate, true_rate, _ = roc_curve(table.true_index, table.probabilities[:, 1], drop_intermediate=False)
    curve = next(line for line in axes.lines if str(line.get_label()).startswith("AUC"))
    assert np.array_equal(curve.get_xdata(), false_rate)
    assert np.array_equal(curve.get_ydata(), true_rate)
    metrics = classification_metrics(table, resamples=200, seed=4)
    words = texts(axes)
    assert f"AUC {metrics.auc:.3f} (95% CI {metrics.auc_ci[0]:.3f}–{metrics.auc_ci[1]:.3f})" in words
    assert "n = 40 slides of 20 patients" in words
    assert "False positive rate" in words
    assert "True positive rate (sensitivity) for tumour" in words
    assert len(axes.collections) == 1


def test_the_band_is_the_percentiles_of_resampled_curves(make_table):
    table = make_table(num_cases=20, slides_per_case=1)
    low, high = figures._band(table, resamples=300, seed=1, level=0.9)
    weights = figures.bootstrap.draw_cases(table.true_index, table.case_index, resamples=300, seed=1).slide_weights
    at = 60  # false positive rate 0.3
    rates = []
    for row in weights.astype(int):
        index = np.repeat(np.arange(20), row)
        false_rate, true_rate, _ = roc_curve(table.true_index[index], table.probabilities[index, 1])
        on = np.flatnonzero(np.isclose(false_rate, 0.3))
        rates.append(true_rate[on].max() if on.size else np.interp(0.3, false_rate, true_rate))
    assert figures._GRID[at] == pytest.approx(0.3)
    assert low[at] == pytest.approx(np.quantile(rates, 0.05), abs=1e-9)
    assert high[at] == pytest.approx(np.quantile(rates, 0.95), abs=1e-9)
    assert (low <= high).all()


def test_several_classes_one_curve_each(make_table):
    axes = roc_figure(make_table(num_cases=30, classes=("a", "b", "c")), title="t", resamples=10).axes[0]
    words = texts(axes)
    assert all(f"{name}, n = 20, AUC" in words for name in "abc")
    assert len({line.get_color() for line in axes.lines}) == 4
    assert len({line.get_linestyle() for line in axes.lines[1:]}) == 3


def test_without_interval_there_is_no_band(make_table):
    axes = roc_figure(make_table(num_cases=6), title="t").axes[0]
    assert not axes.collections
    assert "CI" not in texts(axes)


def test_confusion_shows_counts_and_row_shares(make_table):
    table = make_table(num_cases=21, slides_per_case=1, classes=("a", "b", "c"))
    axes = confusion_figure(table, title="Confusion, test split").axes[0]
    counts = confusion_matrix(table.frame["y_true"], table.frame["y_pred"], labels=["a", "b", "c"])
    shown = [text.get_text() for text in axes.texts]
    assert shown == [f"{count}\n{count / 7:.0%}" for count in counts.ravel()]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a\nn = 7", "b\nn = 7", "c\nn = 7"]
    assert axes.get_ylabel() == "True class"
    assert "21 slides of 21 patients" in axes.get_xlabel()


def test_nothing_to_draw(make_frame):
    frame = make_frame(num_cases=6)
    one_class = parse_predictions(frame[frame["y_true"] == "benign"])
    assert roc_figure(one_class, title="t") is None
    axes = confusion_figure(one_class, title="t").axes[0]
    assert [text.get_text() for text in axes.texts][2:] == ["0\n–", "0\n–"]
    assert confusion_figure(parse_predictions(frame.assign(y_true="")), title="t") is None


def test_files_are_whole_pictures_and_repeat_byte_for_byte(tmp_path, make_table):
    table = make_table(num_cases=12, classes=("grade $1$", "a class whose name is far too long for an axis"))
    for folder in ("one", "two"):
        write_figure(roc_figure(table, title="t", resamples=50), tmp_path / folder / "roc.png")
        write_figure(confusion_figure(table, title="t"), tmp_path / folder / "confusion.png")
    for name in ("roc.png", "roc.svg", "confusion.png", "confusion.svg"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    pixels = np.asarray(Image.open(tmp_path / "one" / "roc.png").convert("RGB"))
    assert min(pixels.shape[:2]) > 600
    blue = np.array([0x00, 0x72, 0xB2])
    assert (np.abs(pixels.astype(int) - blue).max(axis=2) < 8).sum() > 300
    edge = np.concatenate([pixels[:8].reshape(-1, 3), pixels[:, :8].reshape(-1, 3), pixels[:, -8:].reshape(-1, 3)])
    assert (edge == 255).all()  # nothing is cut off
    svg = (tmp_path / "one" / "confusion.svg").read_text(encoding="utf-8")
    assert "grade $1$" in svg
    assert "a class whose name is f…" in svg
