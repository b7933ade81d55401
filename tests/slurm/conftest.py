"""Jobs under a real scheduler: `tests/slurm/cluster.sh up DIR`, then `export SLURM_CONF=DIR/slurm.conf`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

REQUIRED = "SPAN_REQUIRE_SLURM"
"""Environment variable: where it is set, a missing scheduler fails these tests instead of skipping them."""

PATIENCE_S = 280.0
HELD_S = 5.0


def run(*words: object) -> str:
    return subprocess.run([*map(str, words)], capture_output=True, text=True, check=True, timeout=30).stdout.strip()


@dataclass(frozen=True)
class Job:
    """A submitted job, or a task of an array."""

    number: str
    log: Path

    def task(self, index: int) -> Job:
        """A task of this array."""
        return Job(f"{self.number}_{index}", self.log)

    def values(self) -> dict[str, str]:
        shown = run("scontrol", "show", "job", "--oneliner", self.number)
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def wait(self, done: Callable[[], bool] | None = None) -> str:
        """Until it ended or `done`; its state.

        A job that came back is held for two minutes; here for seconds, but not less: the end of its first start, which
        SLURM may hear of late, would be taken for the end of the second one.
        """
        end = time.monotonic() + PATIENCE_S
        held_since = None
        while time.monotonic() < end:
            values = self.values()
            if done is not None and done():
                return values["JobState"]
            if values["JobState"] == "PENDING" and values["Reason"] == "BeginTime":
                held_since = held_since or time.monotonic()
                if time.monotonic() - held_since > HELD_S:
                    subprocess.run(["scontrol", "update", f"JobId={self.number}", "StartTime=now"], check=False)
                    held_since = None
            elif done is None and values["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"):
                time.sleep(1.0)  # signalled or on its way back a job is seen in other states for a moment
                if self.values()["JobState"] == values["JobState"]:
                    return values["JobState"]
            time.sleep(0.3)
        raise AssertionError(f"job {self.number} takes too long: {self.values()}\n{self.text()}")

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""


@pytest.fixture(scope="session")
def _scheduler() -> None:
    try:
        run("sinfo")
    except (OSError, subprocess.SubprocessError) as error:
        reason = f"no SLURM here ({error}); see tests/slurm/cluster.sh"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{REQUIRED} is set, but there is {reason}")
        pytest.skip(reason)


@pytest.fixture
def submit(_scheduler, tmp_path, monkeypatch):
    """Submits a script; returns the job. Whatever is left of it is cancelled afterwards."""
    jobs = []
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in [name for name in os.environ if name.startswith("SLURM_") and name != "SLURM_CONF"]:
        monkeypatch.delenv(name)

    def send(script: str, *options: str, name: str = "job") -> Job:
        path, log = tmp_path / f"{name}.sbatch", tmp_path / f"{name}.log"
        path.write_text(script)
        number = run("sbatch", "--parsable", f"--chdir={tmp_path}", f"--output={log}", *options, path)
        jobs.append(number)
        return Job(number, log)

    yield send
    if jobs:
        subprocess.run(["scancel", "--quiet", *jobs], check=False)


STOPS = """
import os, signal, time
from pathlib import Path
import lightning
from span_sparse import signals

class StopAt(lightning.Callback):
    def __init__(self, plan: dict[str, str]):
        self.plan = plan

    def on_train_batch_start(self, trainer, module, batch, index):
        # what happens in `epoch:batch`: a signal to one process (`SIGUSR1@1`), or all `wait` for the scheduler's
        what = self.plan.get(f"{trainer.current_epoch}:{index}", "")
        if what == "wait":
            Path(trainer.default_root_dir, f"waiting-{trainer.global_rank}").touch()
            end = time.monotonic() + 60
            while not signals.requested() and time.monotonic() < end:
                time.sleep(0.05)
        elif what.endswith(f"@{trainer.global_rank}"):
            os.kill(os.getpid(), getattr(signal, what.split("@")[0]))
"""


@pytest.fixture
def configuration(fit_yaml, tiny_cohort, tmp_path, monkeypatch):
    """A YAML file of a training with a run folder of its own, 11 training slides, one a batch, and planned signals."""
    (tmp_path / "stops.py").write_text(STOPS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    tiny_cohort.change(split=["train"] * 11 + ["val"] * 4 + ["test"] * 2)

    def make(run: str, plan: dict[str, str], **trainer: object) -> Path:
        config = json.loads(fit_yaml.read_text())
        config["data"]["init_args"] |= {"batch_size": 1, "num_workers": 1}
        config["trainer"] |= {"default_root_dir": str(tmp_path / run), **trainer}
        last = {"filename": "final", "enable_version_counter": False}
        config["trainer"]["callbacks"] += [
            {"class_path": "stops.StopAt", "init_args": {"plan": plan}},
            {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": last},
        ]
        path = tmp_path / f"{run}.yaml"
        path.write_text(json.dumps(config))
        return path

    return make
