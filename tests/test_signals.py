from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import pytest

from span_sparse import signals


def test_stop_signals_are_noted_and_end_the_process_again_afterwards() -> None:
    before = [signal.getsignal(number) for number in signals.STOP_SIGNALS]
    with signals.noted():
        assert signals.requested() == 0
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.requested() == signal.SIGUSR1
        with signals.noted():  # a command within a command
            assert signals.requested() == signal.SIGUSR1
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.requested() == signal.SIGTERM
    assert [signal.getsignal(number) for number in signals.STOP_SIGNALS] == before
    with signals.noted():
        assert signals.requested() == 0


def test_other_threads_change_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def body() -> None:
        with signals.noted():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [before]


def _answer(pipe) -> None:
    pipe.send("started")
    pipe.send(f"heard {pipe.recv()}")


@pytest.mark.parametrize("deaf", [True, False])
def test_processes_started_while_blocked_sleep_through_signals(deaf: bool) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs,))
    if deaf:
        with signals.blocked():
            process.start()
    else:
        process.start()
    assert ours.recv() == "started"
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT) if deaf else (signal.SIGTERM,):
        os.kill(process.pid, number)
    if deaf:
        ours.send("you")
        assert ours.recv() == "heard you"
    process.join(20)
    assert process.exitcode == (0 if deaf else -signal.SIGTERM)


def test_a_signal_while_blocked_is_delivered_afterwards() -> None:
    with signals.noted():
        with signals.blocked():
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # to the process, another thread would take it
            assert signals.requested() == 0
        assert signals.requested() == signal.SIGTERM


def test_the_note_is_taken_before_anything_slow_is_imported() -> None:
    """`span fit` answers a signal also while it imports torch."""
    code = (
        "import importlib, os, signal, sys\n"
        "sys.argv = ['span', 'fit', '--help']\n"
        "from span_sparse.cli import main\n"
        "assert not {'torch', 'numpy', 'lightning'} & set(sys.modules)\n"
        "original = importlib.import_module\n"
        "def slow(name):\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    from span_sparse import signals\n"
        "    print(name, signals.requested())\n"
        "    raise SystemExit(7)\n"
        "main.importlib.import_module = slow\n"
        "main.span()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (7, f"span_sparse.cli.fit {int(signal.SIGUSR1)}\n"), done.stderr


def test_a_process_that_is_done_is_not_killed_while_it_ends() -> None:
    script = (
        "import atexit, sys, time\n"
        "from span_sparse.signals import noted\n"
        "atexit.register(lambda: (print('ending', flush=True), time.sleep(1.0), print('ended', flush=True)))\n"
        "with noted():\n    pass\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ending\n"
        for number in signals.STOP_SIGNALS:
            process.send_signal(number)
        assert process.stdout.read() == "ended\n"
    assert process.returncode == 0
