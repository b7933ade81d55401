"""Jobs that come back, with commands that only pretend to work."""

from __future__ import annotations

import pytest

from span_sparse.cli import slurm

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]

STOPPED_ONCE = """\
#!/bin/bash
# extracts in no time; task 2 is told to stop at its first start
if [ "$1" = slurm ]; then exec python -m span_sparse "$@"; fi
echo "shard $SLURM_ARRAY_TASK_ID, start ${SLURM_RESTART_COUNT:-0}: $*"
[ "$SLURM_ARRAY_TASK_ID" != 2 ] || [ -n "${SLURM_RESTART_COUNT:-}" ] || exit 143
[ "$SLURM_ARRAY_TASK_ID" != 3 ] || exit 5
"""


def test_only_the_stopped_task_of_an_extraction_comes_back(submit, tmp_path, monkeypatch) -> None:
    span = tmp_path / "bin" / "span"
    span.parent.mkdir()
    span.write_text(STOPPED_ONCE)
    span.chmod(0o755)
    monkeypatch.setenv("PATH", str(span.parent), prepend=":")
    words = ["extract", "--cpu", "--jobs", "3", "--cpus-per-task", "1", "--mem", "1G", "--", "--store", "s"]
    script = slurm.job_script(slurm.build_parser().parse_args(words))
    array = submit(script, f"--output={tmp_path}/%a.log", name="extract")
    tasks = [array.task(number) for number in (1, 2, 3)]
    assert [task.wait() for task in tasks] == ["COMPLETED", "COMPLETED", "FAILED"]
    assert [task.values()["Restarts"] for task in tasks] == ["0", "1", "0"]
    logs = [(tmp_path / f"{number}.log").read_text() for number in (1, 2, 3)]
    own = "extract --store s --shard slurm --workers 1 --device cpu"
    assert logs[0] == f"shard 1, start 0: {own}\n"
    assert f"shard 2, start 0: {own}\n" in logs[1]
    assert f"SLURM job {array.number}_2 comes back and goes on\n" in logs[1]
    assert f"shard 2, start 1: {own}\n" in logs[1]
    assert tasks[2].values()["ExitCode"] == "5:0"
