from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments" / "slurm"


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.sbatch")), ids=lambda path: path.name)
def test_the_shipped_scripts_are_what_the_command_prints(command, capsys, path: Path, tmp_path, monkeypatch) -> None:
    words = {
        "train": "--nodes 2 --processes-per-node 4 -- --config experiments/span.yaml",
        "extract": "--jobs 16 -- --cohort cohort.csv --slides slides --store features.zarr",
        "crossval": "--jobs 5 -- --config crossval.yaml",
        "evaluate": "-- --checkpoint runs/my/checkpoints/best.ckpt --store features.zarr --cohort cohort.csv "
        "--output results",
    }[path.stem]
    monkeypatch.chdir(tmp_path)
    name = f"experiments/slurm/{path.name}"
    assert command("span", "slurm", path.stem, "--output", name, *words.split()) == 0
    assert capsys.readouterr().out == f"sbatch {name}\n"
    assert Path(name).read_text() == path.read_text()
    subprocess.run(["bash", "-n", name], check=True)


def script(command, capsys, *words: str) -> str:
    assert command("span", "slurm", *words) == 0
    return capsys.readouterr().out


def directives(text: str) -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, re.MULTILINE)
    return dict(found)


def ran(text: str, tmp_path: Path, **variables: str) -> list[list[str]]:
    """What a script runs, with tools that only write down their words."""
    for tool in ("srun", "span"):
        (tmp_path / tool).write_text(
            f'#!/bin/bash\nprintf "%s\\n" {tool} "$@" "" >> {tmp_path}/ran\nexit ${{CODE:-0}}\n'
        )
        (tmp_path / tool).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", **variables}
    subprocess.run(["bash"], input=text, text=True, env=environment, check=False)
    return [entry.splitlines() for entry in (tmp_path / "ran").read_text().split("\n\n") if entry]


def test_a_training_has_a_process_for_each_gpu_and_warns_itself(command, capsys, tmp_path) -> None:
    text = script(
        command, capsys, "train", "--nodes", "3", "--processes-per-node", "2", "--partition", "gpu", "--account", "a",
        "--time", "01:00:00", "--mem", "9G", "--warning", "60", "--directive", "[--constraint=a100]",
        "--setup", "[export HELLO=world]", "--", "--config", "my run.yaml", "--trainer.max_epochs", "3",
    )  # fmt: skip
    assert directives(text) == {
        "job-name": "span-train", "partition": "gpu", "account": "a", "mem": "9G", "time": "01:00:00", "nodes": "3",
        "ntasks-per-node": "2", "gpus-per-node": "2", "cpus-per-task": "8", "signal": "USR1@60", "requeue": "",
        "open-mode": "append", "output": "%x-%j.log", "constraint": "a100",
    }  # fmt: skip
    assert "\nexport HELLO=world\n" in text
    variables = {"SLURM_CPUS_PER_TASK": "8", "SLURM_NNODES": "3", "SLURM_NTASKS_PER_NODE": "2"}
    assert ran(text, tmp_path, **variables) == [
        shlex.split(
            "srun --cpus-per-task=8 --kill-on-bad-exit=1 span fit --config 'my run.yaml' --trainer.max_epochs 3 "
            "--trainer.num_nodes=3 --trainer.devices=2"
        )
    ]


def test_arrays_count_as_their_command_does(command, capsys, tmp_path) -> None:
    text = script(command, capsys, "crossval", "--jobs", "10", "--at-once", "3", "--", "--config", "c.yaml")
    assert directives(text)["array"] == "0-9%3"
    assert directives(text)["output"] == "%x-%A_%a.log"
    assert '--wrap "span crossval --summarise --config c.yaml"' in text
    assert ran(text, tmp_path, SLURM_CPUS_PER_TASK="8", SLURM_ARRAY_TASK_ID="7")[0][3:] == [
        "span", "crossval", "--config", "c.yaml", "--task-index", "7",
    ]  # fmt: skip
    text = script(command, capsys, "extract", "--jobs", "4", "--cpu", "--", "--store", "s")
    assert directives(text)["array"] == "1-4"
    assert directives(text)["signal"] == "TERM@300"
    assert "gpus-per-node" not in directives(text)


@pytest.mark.parametrize("code", [0, 1, 143])
def test_a_stopped_extraction_asks_to_come_back(command, capsys, tmp_path, code) -> None:
    text = script(command, capsys, "extract", "--jobs", "4", "--", "--store", "s")
    found = ran(text, tmp_path, SLURM_CPUS_PER_TASK="2", CODE=str(code))
    assert found[0][3:] == ["span", "extract", "--store", "s", "--shard", "slurm", "--workers", "2", "--device", "cuda"]
    assert found[1:] == ([["span", "slurm", "requeue", "--", str(code)]] if code else [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "--nodes", "2"], "has no --nodes and --processes-per-node"),
        (["train", "--jobs", "2"], "span slurm train is one job"),
        (["extract"], "needs --jobs, the number of parts of the cohort"),
        (["crossval"], "needs --jobs, the number of folds × seeds"),
        (["train", "--nodes", "0"], "--nodes is 0, expected at least 1"),
        (["train", "--partition", "a\n#SBATCH --x"], "expected one line"),
        (["requeue"], "expected the exit code"),
        (["requeue", "--", "x"], "expected the exit code"),
    ],
)
def test_what_cannot_be_meant_is_one_line(command, capsys, words, message) -> None:
    assert command("span", "slurm", *words) == 1
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.splitlines()) == 1


def test_a_script_of_yours_is_not_replaced(command, capsys, tmp_path) -> None:
    path = tmp_path / "x.sbatch"
    path.write_text("mine")
    words = ("span", "slurm", "train", "--output", path)
    assert command(*words) == 1
    assert "is there already" in capsys.readouterr().err
    assert path.read_text() == "mine"
    assert command(*words, "--overwrite") == 0
    assert path.read_text().startswith("#!/bin/bash")


def test_requeue_passes_other_exit_codes_on(command, capsys, monkeypatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert command("span", "slurm", "requeue", "--", "0") == 0
    assert command("span", "slurm", "requeue", "--", "5") == 5
    assert command("span", "slurm", "requeue", "--", "143") == 143
    assert "the job does not come back: SLURM_JOB_ID is not set" in capsys.readouterr().err
