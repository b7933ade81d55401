from __future__ import annotations

from collections.abc import Iterator

from span_sparse.datasets import SlideDataset
from span_sparse.datasets.slide_dataset import SlideItem
from span_sparse.store import FeatureStore
from span_sparse.training.prediction import predict_slides, prediction_frame


def test_every_slide_is_predicted_once_and_the_bar_is_full_at_the_end(make_classifier, tiny_cohort) -> None:
    items = [SlideItem(f"s{number:02d}", "p", number % 3) for number in range(5)]
    data = SlideDataset(FeatureStore(tiny_cohort.store), items)
    done: list[int] = []

    def bar() -> Iterator[int]:
        for step in range(3):
            yield step
            done.append(step)  # as rich counts a step: when the next one is asked for

    rows = predict_slides(make_classifier().eval(), data, batch_size=2, progress=bar())
    assert rows.indices.tolist() == [0, 1, 2, 3, 4]
    assert rows["labels"].tolist() == [0, 1, 2, 0, 1]
    assert done == [0, 1, 2]


def test_the_table_says_what_the_model_said(make_classifier, tiny_cohort) -> None:
    items = [SlideItem("s03", "p03", 2), SlideItem("s00", "p00")]
    model = make_classifier().eval()
    rows = predict_slides(model, SlideDataset(FeatureStore(tiny_cohort.store), items))
    frame = prediction_frame(model, rows, items, split=["test", "all"], fold="f")
    assert list(frame.columns) == [
        "slide_id", "case_id", "fold", "split", "y_true", "y_pred", "prob_a", "prob_b", "prob_c",
    ]  # fmt: skip
    assert frame[["slide_id", "case_id", "fold", "split"]].to_numpy().tolist() == [
        ["s03", "p03", "f", "test"],
        ["s00", "p00", "f", "all"],
    ]
    assert frame["y_true"].tolist()[0] == "c"
    assert frame["y_true"].isna().tolist() == [False, True]
    probabilities = frame[["prob_a", "prob_b", "prob_c"]].to_numpy()
    assert abs(probabilities.sum(axis=1) - 1).max() < 1e-6
    assert frame["y_pred"].tolist() == ["abc"[best] for best in probabilities.argmax(axis=1)]
