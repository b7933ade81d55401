"""Training, validation and evaluation with batches that are made ready ahead, beside those that are not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from span_sparse.cli.evaluate import _check, _choose_steps, build_parser
from span_sparse.datasets import SlideDataset, datamodule
from span_sparse.datasets.prefetch import Placement
from span_sparse.datasets.slide_dataset import SlideItem
from span_sparse.errors import ConfigError
from span_sparse.models import SpanMilConfig
from span_sparse.store import FeatureStore
from span_sparse.training import prediction
from span_sparse.training.ensemble import Ensemble
from span_sparse.training.prediction import rows_of, stream_outcomes

sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))
from fake_lane import FakeLane


def ahead(device, network=None) -> Placement:
    return Placement(torch.device("cpu"), getattr(network, "prepare", None), lane=FakeLane)


def items(count: int) -> list[SlideItem]:
    return [SlideItem(f"s{number:02d}", "p", number % 3) for number in range(count)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_training_is_the_same_bit_for_bit(fit_yaml, tmp_path, command, monkeypatch, num_workers: int) -> None:
    """Two epochs with validation: weights and optimiser, from the checkpoint."""
    config = json.loads(fit_yaml.read_text())
    config["data"]["init_args"] |= {"batch_size": 2, "num_workers": num_workers}
    fit_yaml.write_text(json.dumps(config))
    found = []
    for name in ("plain", "ahead"):
        if name == "ahead":
            monkeypatch.setattr(datamodule, "placement_for", ahead)
        assert command("span", "fit", "--config", fit_yaml, "--trainer.default_root_dir", tmp_path / name) == 0
        (path,) = (tmp_path / name).rglob("last.ckpt")
        found.append(torch.load(path, map_location="cpu", weights_only=False))
    plain, ours = (checkpoint["state_dict"] for checkpoint in found)
    assert plain.keys() == ours.keys()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in plain.items())
    losses = [next(iter(one["callbacks"].values()))["best_model_score"] for one in found]
    assert torch.equal(*losses)


def test_an_evaluation_is_the_same_in_any_grouping(make_classifier, tiny_cohort, monkeypatch) -> None:
    models = [make_classifier().eval(), make_classifier().eval()]
    data = SlideDataset(FeatureStore(tiny_cohort.store), items(9))

    def rows(**settings) -> list[list[dict[str, object]]]:
        found: list[list[dict[str, object]]] = [[], []]
        for parts in stream_outcomes(Ensemble(models), data, **settings):
            for one, model, part in zip(found, models, parts, strict=True):
                one += rows_of(model, part)
        return found

    alone, grouped = rows(), rows(max_tokens=70)
    monkeypatch.setattr(prediction, "placement_for", ahead)
    assert rows() == alone
    assert rows(max_tokens=70) == grouped
    assert rows(max_tokens=70, num_workers=2) == grouped
    for one, other in zip(alone, grouped, strict=True):
        assert [row["y_true"] for row in one] == [row["y_true"] for row in other]
        for name in ("prob_a", "prob_b", "prob_c"):
            assert [row[name] for row in other] == pytest.approx([row[name] for row in one], abs=1e-6)


def test_a_slide_that_fails_does_not_take_the_ones_before_with_it(make_classifier, tiny_cohort, monkeypatch) -> None:
    from span_sparse.errors import StoreError

    names = [SlideItem("s00", "p", 0), SlideItem("s01", "p", 1), SlideItem("absent", "p", 2)]
    data = SlideDataset(FeatureStore(tiny_cohort.store), names)
    monkeypatch.setattr(prediction, "placement_for", ahead)
    model = make_classifier().eval()
    pending = stream_outcomes(Ensemble([model]), data)
    behind = prediction._one_behind(prediction._Pending(parts, None) for parts in pending)
    assert [next(behind)[0].indices.item() for _ in range(2)] == [0, 1]
    with pytest.raises(StoreError, match="absent"):
        next(behind)


def test_models_of_the_same_settings_share_a_geometry(make_classifier, monkeypatch) -> None:
    other = SpanMilConfig(stages="11", head_channels=8, window_size=3)
    models = [make_classifier(), make_classifier(network=other), make_classifier()]
    made = []

    def prepare_of(name: int):
        return lambda coords, num_slides: made.append(name) or f"{name} of {num_slides}"

    for name, model in enumerate(models):
        model.network.prepare = prepare_of(name)
    assert Ensemble(models).prepare("coordinates", 4) == ("0 of 4", "1 of 4", "0 of 4")
    assert made == [0, 1]


@pytest.mark.parametrize(
    ("words", "device", "expected"),
    [
        ([], "cpu", (1, None)),
        ([], "cuda:1", (1, 200_000)),
        (["--batch-size", "3"], "cuda", (3, None)),
        (["--max-tokens", "5000"], "cpu", (1, 5000)),
    ],
)
def test_steps_of_an_evaluation_by_device(words, device: str, expected) -> None:
    args = build_parser().parse_args(["--checkpoint", "x.ckpt", "--store", "s", "--output", "o", *words])
    _check(args)
    _choose_steps(args, device)
    assert (args.batch_size, args.max_tokens) == expected
    assert (args.num_workers > 0) == device.startswith("cuda")


def test_two_ways_to_make_a_step_are_refused() -> None:
    words = ["--checkpoint", "x.ckpt", "--store", "s", "--output", "o", "--batch-size", "2", "--max-tokens", "9"]
    with pytest.raises(ConfigError, match="--batch-size 2 and --max-tokens 9 both"):
        _check(build_parser().parse_args(words))
