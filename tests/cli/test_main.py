from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from jsonargparse import ArgumentParser

from span_sparse.cli import main
from span_sparse.errors import StoreError


@pytest.fixture
def verb(monkeypatch):
    """Replaces the module of `span inspect` by one whose `run` is given; returns what it was called with."""

    def replace(run):
        calls = []

        def build_parser() -> ArgumentParser:
            parser = ArgumentParser(exit_on_error=True)
            parser.add_argument("slide")
            parser.add_argument("--level", type=int, default=0)
            return parser

        def record(args):
            calls.append((args.slide, args.level))
            return run()

        module = SimpleNamespace(DESCRIPTION="Look.", build_parser=build_parser, run=record)
        monkeypatch.setitem(sys.modules, "span_sparse.cli.inspect", module)
        return calls

    return replace


@pytest.fixture
def trainer(monkeypatch):
    """Replaces LightningCLI's module; returns the argument lists it was called with."""
    calls: list[list[str]] = []
    module = SimpleNamespace(main=lambda arguments: calls.append(arguments) or 3)
    monkeypatch.setitem(sys.modules, "span_sparse.cli.fit", module)
    return calls


def call(monkeypatch, entry, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [entry.__name__, *arguments])
    with pytest.raises(SystemExit) as caught:
        entry()
    return caught.value.code


def raising(error: BaseException):
    def run() -> int:
        raise error

    return run


def test_a_verb_gets_its_arguments_and_gives_the_exit_code(monkeypatch, verb):
    calls = verb(lambda: 7)
    assert call(monkeypatch, main.span, "inspect", "a.svs", "--level", "2") == 7
    assert calls == [("a.svs", 2)]


def test_a_verb_that_returns_nothing_succeeded(monkeypatch, verb):
    verb(lambda: None)
    assert call(monkeypatch, main.span, "inspect", "a.svs") == 0


def test_wrong_options_exit_with_2(monkeypatch, verb, capsys):
    calls = verb(lambda: 0)
    assert call(monkeypatch, main.span, "inspect", "a.svs", "--levle", "2") == 2
    assert not calls
    assert "levle" in capsys.readouterr().err


def test_a_user_error_is_one_line_and_exit_1(monkeypatch, verb, capsys):
    verb(raising(StoreError("features.zarr: not a store; run `span extract` first")))
    monkeypatch.delenv("SPAN_DEBUG", raising=False)
    assert call(monkeypatch, main.span, "inspect", "a.svs") == 1
    assert capsys.readouterr().err == "error: features.zarr: not a store; run `span extract` first\n"


@pytest.mark.parametrize(("arguments", "variable"), [(["--debug"], None), ([], "1"), ([], "0")])
def test_debugging_shows_the_stack_trace(monkeypatch, verb, capsys, arguments, variable):
    verb(raising(StoreError("not a store")))
    monkeypatch.delenv("SPAN_DEBUG", raising=False)
    if variable is not None:
        monkeypatch.setenv("SPAN_DEBUG", variable)
    assert call(monkeypatch, main.span, "inspect", "a.svs", *arguments) == 1
    captured = capsys.readouterr().err
    assert ("Traceback" in captured) == (variable != "0")
    assert captured.endswith("error: not a store\n")


def test_the_operating_system_s_errors_are_one_line_too(monkeypatch, verb, capsys):
    verb(raising(PermissionError(13, "Permission denied", "out/metrics.json")))
    assert call(monkeypatch, main.span, "inspect", "a.svs") == 1
    assert capsys.readouterr().err == (
        "error: out/metrics.json: Permission denied; check the path and its permissions\n"
    )


def test_errors_of_the_program_are_not_hidden(monkeypatch, verb):
    verb(raising(AssertionError("a bug")))
    monkeypatch.setattr(sys, "argv", ["span", "inspect", "a.svs"])
    with pytest.raises(AssertionError, match="a bug"):
        main.span()


def test_interruption_exits_with_130(monkeypatch, verb, capsys):
    verb(raising(KeyboardInterrupt()))
    assert call(monkeypatch, main.span, "inspect", "a.svs") == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_an_unknown_verb_is_corrected(monkeypatch, capsys):
    assert call(monkeypatch, main.span, "extrcat", "--cohort", "c.csv") == 2
    assert capsys.readouterr().err == "error: span has no verb 'extrcat'; did you mean `span extract`?\n"
    assert call(monkeypatch, main.span, "zzz") == 2
    assert f"expected one of {', '.join((*main.VERBS, 'fit', 'test'))}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entry", "arguments"),
    [
        (main.span, ["fit", "--config", "a.yaml", "--trainer.max_epochs=1"]),
        (main.span, ["test", "--ckpt_path", "c.ckpt"]),
        *[(main.lightning, [verb, "--config", "a.yaml"]) for verb in ("fit", "validate", "test")],
    ],
)
def test_training_goes_to_lightning_cli_with_its_verb(monkeypatch, trainer, entry, arguments):
    assert call(monkeypatch, entry, *arguments) == 3
    assert trainer == [arguments]


def test_lightning_without_another_package(monkeypatch, trainer, capsys):
    monkeypatch.setattr(main, "_other_lightning", lambda: None)
    assert call(monkeypatch, main.lightning, "run", "app") == 2
    message = capsys.readouterr().err
    assert "expected one of fit|validate|test" in message
    assert "lightning-sdk, which is not installed" in message
    assert call(monkeypatch, main.lightning, "--help") == 0
    assert "usage: lightning fit|validate|test" in capsys.readouterr().out
    assert not trainer


@pytest.fixture
def other_package(tmp_path, monkeypatch):
    """An installed distribution with a command `lightning` of its own."""
    (tmp_path / "other_cli.py").write_text(
        "import json, sys\ndef command():\n    print(json.dumps(sys.argv))\n    return 5\n", encoding="utf-8"
    )
    info = tmp_path / "lightning_sdk-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lightning-sdk\nVersion: 9.9\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[console_scripts]\nlightning = other_cli:command\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("other_cli", None)


def test_other_commands_go_to_the_package_that_has_them(monkeypatch, trainer, capsys, other_package):
    assert call(monkeypatch, main.lightning, "run", "app", "--cloud") == 5
    captured = capsys.readouterr()
    assert json.loads(captured.out) == ["lightning", "run", "app", "--cloud"]
    assert "passing the command on to lightning-sdk" in captured.err
    assert call(monkeypatch, main.lightning, "fit") == 3
    assert trainer == [["fit"]]


def test_versions(monkeypatch, capsys):
    assert call(monkeypatch, main.span, "--version") == 0
    assert capsys.readouterr().out == f"span {importlib.metadata.version('span-sparse')}\n"


def test_help_lists_every_verb_with_its_description(monkeypatch, capsys):
    assert call(monkeypatch, main.span, "--help") == 0
    shown = capsys.readouterr().out
    for name in main.VERBS:
        module = main._module(name)
        assert f"  {name:<17}{module.DESCRIPTION}" in shown
        assert module.build_parser().prog == f"span {name}"
    assert f"  {'fit':<17}Train a model" in shown
    assert call(monkeypatch, main.span) == 2


def test_help_and_inspect_load_neither_torch_nor_spconv():
    code = """
import sys
from span_sparse.cli.main import span
for arguments in (["--help"], ["inspect", "absent.svs"], ["nonsense"]):
    sys.argv = ["span", *arguments]
    try:
        span()
    except SystemExit as stop:
        print(stop.code, file=sys.stderr)
print([name for name in ("torch", "spconv", "lightning", "cumm") if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert lines[0] == "0"
    assert lines[1].startswith("error: ")
    assert "absent.svs" in lines[1]
    assert lines[2] == "1"
    assert lines[-2:] == ["2", "[]"]


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "span_sparse", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"span {importlib.metadata.version('span-sparse')}\n"


def test_a_closed_pipe_ends_quietly():
    code = "import sys; sys.argv = ['span', '--version']; from span_sparse.cli.main import span; span()"
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=write_end, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, "")
