"""Checks every annotated axis while the tests run, and gives all tests the same small helpers."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the first import of Triton: kernels run on CPU tensors

from jaxtyping import install_import_hook

# not `training`: a checkpoint calls its constructors with plain values instead of settings objects
PACKAGES = ["span_sparse.sparse", "span_sparse.nn", "span_sparse.models", "span_sparse.datasets"]
_hook = install_import_hook(PACKAGES, "beartype.beartype")


class _KernelFinder(MetaPathFinder):
    """Leaves Triton kernels as they are: a checked function is none of Triton's, for its names are another module's."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(fullname, path, target) if fullname.endswith("_kernels") else None


sys.meta_path.insert(0, _KernelFinder())


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


NUM_CHANNELS = 16
SPLITS = ("train", "train", "train", "train", "train", "train", "val", "val", "val", "val", *["test"] * 7)


@dataclass(frozen=True)
class TinyCohort:
    """A store of a few small slides with random features, and its table; a copy of its own for every test."""

    root: Path

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def csv(self) -> Path:
        return self.root / "cohort.csv"

    @property
    def frame(self) -> pd.DataFrame:
        return pd.read_csv(self.csv, dtype=str, keep_default_na=False)

    def change(self, **columns: Any) -> None:
        """Replaces columns of the table; None drops one."""
        frame = self.frame
        for name, values in columns.items():
            frame = frame.drop(columns=name) if values is None else frame.assign(**{name: values})
        frame.to_csv(self.csv, index=False)

    def data_arguments(self) -> list[str]:
        """For the command line of `lightning fit`."""
        return [
            "--data=span_sparse.datasets.datamodule.SlideDataModule",
            f"--data.init_args.store={self.store}",
            f"--data.init_args.cohort={self.csv}",
        ]


@pytest.fixture(scope="session")
def _tiny_cohort(tmp_path_factory: pytest.TempPathFactory) -> TinyCohort:
    from span_sparse.grid import LatticeSpec
    from span_sparse.store import FeatureStore, SlideRecord
    from span_sparse.types import EncoderIdentity

    cohort = TinyCohort(tmp_path_factory.mktemp("tiny"))
    spec = LatticeSpec(patch_size_px=32, target_mpp=1.0)
    encoder = EncoderIdentity("stain-texture", "1", "descriptor", NUM_CHANNELS, 32, 1.0, "float32")
    random = np.random.default_rng(0)
    rows = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        store = FeatureStore.create(cohort.store)
        for number, split in enumerate(SPLITS):
            cells = random.permutation(100)[: 12 + 3 * number]
            grid = np.stack(np.divmod(cells, 10), axis=1).astype(np.int32)
            lattice = spec.on_slide(1.0)
            store.write(
                SlideRecord(
                    slide_id=f"s{number:02d}",
                    case_id=f"p{number:02d}",
                    features=random.standard_normal((len(grid), NUM_CHANNELS)).astype(np.float32),
                    grid=grid,
                    coords=lattice.to_px0(grid),
                    lattice=lattice,
                    mpp_source="cohort",
                    encoder=encoder,
                    slide_checksum=f"sha256:{number:02x}",
                    width_px0=330,
                    height_px0=330,
                    provenance={},
                )
            )
            rows.append((f"s{number:02d}", f"p{number:02d}", "ab"[number % 2], split))
    pd.DataFrame(rows, columns=["slide_id", "case_id", "label", "split"]).to_csv(cohort.csv, index=False)
    return cohort


@pytest.fixture
def tiny_cohort(_tiny_cohort: TinyCohort, tmp_path: Path) -> TinyCohort:
    shutil.copytree(_tiny_cohort.root, tmp_path / "tiny")
    return TinyCohort(tmp_path / "tiny")


TINY_NETWORK = {
    "class_path": "span_sparse.models.SpanMilConfig",
    "init_args": {"stages": "11", "head_channels": 8, "window_size": 2, "head": "pyramid_pooling"},
}


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


@pytest.fixture
def command(monkeypatch):
    """Runs `span ...` or `lightning ...` in this process; returns the exit code."""

    from span_sparse.cli import main

    def run(name: str, *words: object) -> int:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            getattr(main, name)()
        return caught.value.code

    return run


@pytest.fixture
def make_heatmaps(tmp_path: Path):
    """Writes a folder like that of `span heatmap`, by hand: slide id -> scores by name, of patches in rows of eight."""

    def make(slides: dict[str, dict[str, list[float]]], name: str = "heatmaps", **meta: Any) -> Path:
        rows = ["slide_id,case_id,folder,status,error"]
        for number, (slide_id, scores) in enumerate(slides.items()):
            folder = tmp_path / name / f"folder{number}"
            folder.mkdir(parents=True)
            about = {
                "slide_id": slide_id, "case_id": f"p{number}", "checkpoint": "best.ckpt", "scores": list(scores),
                "default_score": next(iter(scores)), "predicted": {"prob_b": 0.25}, "patch_px0": 64, "step_px0": 64,
                "dimensions_px0": [1000, 700], "mpp": 0.5, "slide_path": None, "files": {"png": "heatmap.png"},
            } | meta  # fmt: skip
            lines = [",".join(["row", "col", "x_px0", "y_px0", *scores])]
            for patch, values in enumerate(zip(*scores.values(), strict=True)):
                row, col = divmod(patch, 8)
                place = (row, col, col * about["step_px0"], row * about["step_px0"])
                lines.append(",".join(map(str, (*place, *values))))
            (folder / "scores.csv").write_text("\n".join(lines) + "\n")
            (folder / "meta.json").write_text(json.dumps(about))
            rows.append(
                ",".join([f'"{slide_id.replace(chr(34), chr(34) * 2)}"', f"p{number}", folder.name, "done", ""])
            )
        (tmp_path / name / "heatmaps.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        return tmp_path / name

    return make


@pytest.fixture
def serve() -> Iterator[Callable[..., Any]]:
    """Starts a viewer of a folder of heatmaps; all are ended after the test."""
    from span_sparse.report import read_heatmap_folder
    from span_sparse.viewer import ViewerContent, ViewerServer

    running = []

    def start(heatmaps: Path, slides_dir: Path | None = None, evaluation: Any = None) -> ViewerServer:
        server = ViewerServer(ViewerContent(read_heatmap_folder(heatmaps), slides_dir, evaluation))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()
