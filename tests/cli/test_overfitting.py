from __future__ import annotations

import json

import pandas as pd
import pytest

from span_sparse.cli.run_summary import overfitting


@pytest.fixture
def learned_by_heart(command, fit_yaml, tmp_path):
    """Trains on few slides without augmentation for many epochs; the history of the run."""

    def run(*words: object) -> pd.DataFrame:
        config = json.loads(fit_yaml.read_text())
        config["data"]["init_args"]["augment"] = False
        config["model"]["init_args"]["learning_rate"] = 0.02
        fit_yaml.write_text(json.dumps(config))
        assert command("span", "fit", "--config", fit_yaml, "--trainer.max_epochs", 40, *words) == 0
        return pd.read_csv(tmp_path / "run" / "history.csv")

    return run


@pytest.mark.filterwarnings("ignore:You requested to overfit:UserWarning")
def test_one_batch_can_be_learned_by_heart(learned_by_heart) -> None:
    """The check everybody makes first: a network that cannot do this has no use for more data."""
    history = learned_by_heart("--trainer.overfit_batches", 1)
    assert history["train_loss"].iloc[0] > 0.3
    assert history["train_loss"].iloc[-1] < 0.02


def test_a_run_that_overfits_says_so_and_keeps_the_best_epoch(learned_by_heart, tiny_cohort, tmp_path, capsys) -> None:
    labels = tiny_cohort.frame["label"].tolist()
    swapped = ["b" if label == "a" else "a" for label in labels[6:10]]
    tiny_cohort.change(label=[*labels[:6], *swapped, *labels[10:]])  # what helps in training is wrong in validation
    history = learned_by_heart()
    note = capsys.readouterr().out.splitlines()[-1]
    best, last = history.loc[history["val_loss"].idxmin()], history.iloc[-1]
    assert note.startswith(f"overfitting: val_loss rose from {best['val_loss']:.3g} (epoch {best['epoch']:.0f}) to ")
    assert f"to {last['val_loss']:.3g} (epoch 39) while train_loss fell from {best['train_loss']:.3g} to " in note
    assert json.loads((tmp_path / "run" / "run.json").read_text())["selection"]["best_epoch"] == best["epoch"]


def row(epoch: int, train: object, val: object) -> dict[str, str]:
    return {"epoch": str(epoch), "train_loss": str(train), "val_loss": str(val)}


@pytest.mark.parametrize(
    ("rows", "is_told"),
    [
        ([], False),
        ([row(0, 0.7, 0.7), row(1, 0.5, 0.6)], False),  # still learning
        ([row(0, 0.7, 0.6), row(1, 0.5, 0.71)], False),  # a little worse
        ([row(0, 0.7, 0.6), row(1, 0.5, 0.73)], True),
        ([row(0, 0.1, 0.002), row(1, 0.01, 0.006)], False),  # nothing to speak of
        ([row(0, 0.7, 0.6), row(1, 0.8, 1.5)], False),  # diverges: nothing was learned by heart
        ([row(0, 0.7, -1.0), row(1, 0.5, -0.7)], True),  # a loss below zero
        ([row(0, 0.7, 0.6), row(1, "", ""), row(2, 0.1, "nan")], False),
    ],
)
def test_when_it_is_told(rows, is_told) -> None:
    assert (overfitting(rows) is not None) == is_told
