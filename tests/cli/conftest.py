from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from span_sparse.cli import main

TINY_NETWORK = {
    "class_path": "span_sparse.models.SpanMilConfig",
    "init_args": {"stages": "11", "head_channels": 8, "window_size": 2, "head": "pyramid_pooling"},
}


@pytest.fixture
def command(monkeypatch):
    """Runs `span ...` or `lightning ...` in this process; returns the exit code."""

    def run(name: str, *words: object) -> int:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            getattr(main, name)()
        return caught.value.code

    return run


@pytest.fixture
def fit_yaml(tiny_cohort, tmp_path: Path) -> Path:
    """A configuration like experiments/span.yaml for the tiny cohort; JSON is YAML."""
    path = tmp_path / "tiny.yaml"
    classes = "lightning.pytorch.callbacks"
    path.write_text(
        json.dumps(
            {
                "seed_everything": 1,
                "model": {
                    "class_path": "span_sparse.training.SlideClassifier",
                    "init_args": {"network": TINY_NETWORK, "learning_rate": 0.003},
                },
                "data": {
                    "class_path": "span_sparse.datasets.datamodule.SlideDataModule",
                    "init_args": {"store": str(tiny_cohort.store), "cohort": str(tiny_cohort.csv), "batch_size": 4},
                },
                "trainer": {
                    "accelerator": "cpu",
                    "max_epochs": 2,
                    "log_every_n_steps": 1,
                    "enable_progress_bar": False,
                    "enable_model_summary": False,
                    "num_sanity_val_steps": 0,
                    "default_root_dir": str(tmp_path / "run"),
                    "callbacks": [
                        {
                            "class_path": f"{classes}.ModelCheckpoint",
                            "init_args": {
                                "filename": "best",
                                "monitor": "val_loss",
                                "save_last": True,
                                "enable_version_counter": False,
                            },
                        }
                    ],
                },
            },
            indent=1,
        )
    )
    return path
