from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from span_sparse.heatmaps.faithfulness import removal_curves, write_faithfulness


def share_of_known(rows) -> float:
    """A model that counts the patches 0 to 4 of twenty."""
    return float(np.isin(rows, np.arange(5)).sum()) / 5


def test_curves_of_a_model_whose_patches_are_known():
    scores = np.array([9.0] * 5 + [1.0] * 15)
    curves = removal_curves(share_of_known, scores, steps=4, num_random=200)
    np.testing.assert_allclose(curves.kept, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(curves.insertion, [1, 1, 1, 1])
    np.testing.assert_allclose(curves.deletion, [0, 0, 0, 1])
    np.testing.assert_allclose(curves.random, curves.kept, atol=0.05)
    figures = curves.figures()
    assert figures["answer"] == 1
    assert figures["insertion_area"] == 1
    assert figures["deletion_area"] == pytest.approx(0.125 / 0.75)  # a triangle over the last quarter
    assert figures["random_area"] == pytest.approx(0.625, abs=0.03)
    assert figures["insertion_gain"] == pytest.approx(0.375, abs=0.03)
    assert figures["deletion_gain"] == pytest.approx(0.625 - 1 / 6, abs=0.03)


def test_scores_upside_down_are_worse_than_chance():
    figures = removal_curves(share_of_known, np.arange(20.0)).figures()
    assert figures["deletion_gain"] < -0.2
    assert figures["insertion_gain"] < -0.2


@pytest.mark.parametrize("num_patches", [1, 2, 3])
def test_few_patches_have_fewer_steps(num_patches):
    curves = removal_curves(len, np.zeros(num_patches))
    assert curves.kept.tolist() == [(k + 1) / num_patches for k in range(num_patches)]
    assert curves.insertion.tolist() == list(range(1, num_patches + 1))
    assert np.isfinite(list(curves.figures().values())).all()


def test_random_orders_are_the_same_every_time():
    first, second = (removal_curves(share_of_known, np.arange(20.0)).random for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_table_and_picture(tmp_path):
    curves = removal_curves(share_of_known, np.arange(20.0)[::-1])
    write_faithfulness(tmp_path, [("a", "attention", curves), ("b$x$", "attention", removal_curves(len, np.zeros(1)))])
    frame = pd.read_csv(tmp_path / "faithfulness.csv")
    assert list(frame.columns) == [
        "slide_id", "score", "answer", "insertion_area", "random_area", "deletion_area", "deletion_gain",
        "insertion_gain",
    ]  # fmt: skip
    assert frame.loc[0, "insertion_gain"] == pytest.approx(curves.figures()["insertion_gain"], rel=1e-6)
    with Image.open(tmp_path / "faithfulness.png") as picture:
        assert picture.size == (900, 720)
