from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest


@pytest.fixture
def heatmaps(make_heatmaps):
    return make_heatmaps({"a": {"attention": [1.0, 2.0]}})


def test_it_serves_until_it_is_interrupted(heatmaps):
    words = [sys.executable, "-m", "span_sparse", "view", "--heatmaps", str(heatmaps)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # a shell that runs the tests in the background has them ignore Ctrl+C, and what they start inherits that
    with subprocess.Popen(words, **pipes, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as process:
        assert process.stdout.readline().startswith("1 slides. Open this address")
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address, timeout=10) as answer:
            assert b"span view" in answer.read()
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(address.rsplit("/", 2)[0] + "/", timeout=10)
        refused.value.close()
        assert refused.value.code == 404
        process.send_signal(signal.SIGINT)
        try:
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, output, errors) == (0, "ended\n", "")


def test_a_port_that_is_taken(command, heatmaps, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert command("span", "view", "--heatmaps", heatmaps, "--port", port) == 1
    assert f"port {port} cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "70000"], "--port 70000"),
        (["--slides", "absent"], "absent: no such folder of slides"),
        (["--evaluation", "absent"], "absent: has no predictions.csv"),
    ],
)
def test_mistakes_are_one_line(command, heatmaps, capsys, words, said):
    assert command("span", "view", "--heatmaps", heatmaps, *words) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_nothing_to_view(command, tmp_path, capsys):
    assert command("span", "view", "--heatmaps", tmp_path) == 1
    assert "no complete slide" in capsys.readouterr().err
