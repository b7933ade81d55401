"""The first cases of the fuzz benchmark, all ways out of a folder among them, and that it would notice."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from span_sparse.store import FeatureStore

BENCHMARKS = Path(__file__).parents[1] / "experiments" / "benchmarks"


@pytest.fixture(scope="module")
def inputs():
    spec = importlib.util.spec_from_file_location("fuzz_inputs_under_test", BENCHMARKS / "fuzz_inputs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fuzz(inputs, monkeypatch):
    monkeypatch.setitem(sys.modules, "fuzz_inputs", inputs)
    spec = importlib.util.spec_from_file_location("fuzz_under_test", BENCHMARKS / "fuzz.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fuzz_under_test", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_twenty_cases_without_a_defect(tmp_path):
    output = tmp_path / "fuzz.json"
    command = [sys.executable, str(BENCHMARKS / "fuzz.py"), "--cases", "20", "--seed", "7", "--slides", str(tmp_path)]
    done = subprocess.run(
        [*command, "--json", str(output)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    figures = json.loads(output.read_text())
    assert [figures[name] for name in ("crashes", "hangs", "silent")] == [0, 0, 0]
    assert figures["ok"] + figures["refused"] + figures["library_signals"] == figures["cases"] == 20


@pytest.mark.parametrize("suffix", [".svs", ".xml"])
def test_the_same_numbers_give_the_same_damage(inputs, tmp_path, suffix):
    before = inputs.ASAP.encode() * 3
    found = set()
    for seed in range(40):
        contents = []
        for name in ("a", "b"):
            path = tmp_path / f"{name}{suffix}"
            path.write_bytes(before)
            kinds = inputs.damage(path, random.Random(seed))
            contents.append((kinds, path.read_bytes()))
        assert contents[0] == contents[1]
        found.update(contents[0][0].split("+"))
    assert found == set(inputs.BINARY) | (set(inputs.TEXT) if suffix == ".xml" else set())


@pytest.mark.parametrize("name", ["_flip", "_header_number", "_swap", "_insert", "_truncate", "_blank", "_text_number"])
def test_damage_of_very_short_files(inputs, name):
    for content in (b"", b"1", b"123"):
        for seed in range(20):
            assert isinstance(getattr(inputs, name)(content, random.Random(seed)), bytes)


def test_a_store_that_does_not_validate_is_noticed(fuzz, tmp_path):
    store = Path(shutil.copytree(Path(__file__).parent / "conformance" / "store_v2", tmp_path / "store"))
    if not (store / "zarr.json").exists():
        store = next(path.parent for path in store.glob("*/zarr.json"))
    assert fuzz.checked(("ok", ""), store) == ("ok", "")
    slide = next(path for path in store.iterdir() if path.is_dir())
    shard = slide / "features" / "c" / "0" / "0"
    shard.write_bytes(b"\1" + shard.read_bytes()[1:])
    outcome, detail = fuzz.checked(("refused", "x"), store)
    assert outcome == "silent"
    assert "checksum" in detail
    empty = FeatureStore.create(tmp_path / "empty").path
    assert fuzz.checked(("ok", ""), empty) == ("silent", "success, and no slide in the store")
