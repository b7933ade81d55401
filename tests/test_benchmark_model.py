"""The benchmark of the model runs and writes what it promises; its floors are those worked out by hand."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

FOLDER = Path(__file__).parents[1] / "experiments" / "benchmarks"
BENCHMARK = FOLDER / "model.py"
CPU = torch.device("cpu")


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    for name in ("model", "floors", "launches", "measuring", "model_figure"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("model")


@pytest.fixture
def floors(benchmark_module: ModuleType) -> ModuleType:
    return sys.modules["floors"]


@pytest.mark.slow
def test_it_writes_one_row_a_cell(tmp_path: Path) -> None:
    figures = tmp_path / "model.json"
    command = [sys.executable, str(BENCHMARK), "--models", "span", "full_attention_fused", "--patches", "120"]
    command += ["--modes", "forward_backward", "--budget-s", "0", "--json", str(figures)]
    command += ["--figure", str(tmp_path / "model.png")]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    cells = json.loads(figures.read_text(encoding="utf-8"))
    assert [(cell["model"], cell["patches"]) for cell in cells] == [
        ("span", 120),
        ("full_attention_fused", 120),
    ]
    keys = {
        "model", "patches", "mode", "seconds", "cpu_seconds", "peak_mb", "ratio_to_matmul", "device", "precision",
        "floor_seconds", "ratio_to_floor",
    }  # fmt: skip
    for cell in cells:
        assert keys <= set(cell)
        assert (cell["device"], cell["precision"], cell["mode"]) == ("cpu", "fp32", "forward_backward")
        assert cell["seconds"] > 0
        assert cell["cpu_seconds"] > 0
        assert cell["peak_mb"] >= 0
        assert cell["ratio_to_matmul"] > 0.5
        assert cell["ratio_to_floor"] == pytest.approx(cell["seconds"] / cell["floor_seconds"])
        by_bytes, by_operations = (
            cell["floor_mb"] / cell["bandwidth_gb_s"] / 1e3,
            cell["floor_gflop"] / cell["peak_gflop_s"],
        )
        assert cell["floor_seconds"] == pytest.approx(max(by_bytes, by_operations))
    assert "× own matmuls" in result.stdout
    assert "× floor" in result.stdout
    assert (tmp_path / "model.png").stat().st_size > 0
    # projection, window attention and feed-forward of stage 0 alone, at 120 patches, and twice as much again
    # for the gradients
    assert cells[0]["matmul_gflop"] > 3 * 2e-9 * 120 * (1024 * 512 + 4 * 512 * 512 + 2 * 512 * 1024)


def test_rows_and_bytes_are_those_counted_by_hand(floors: ModuleType) -> None:
    square = torch.cartesian_prod(torch.arange(1), torch.arange(4), torch.arange(4)).int()
    assert floors.token_rows("span", square) == [16, 4, 1]
    far = torch.tensor([[0, 0, 0], [0, 1, 1], [0, 2, 0], [0, 9, 9]], dtype=torch.int32)
    assert floors.token_rows("span", far) == [4, 3, 2]
    assert floors.token_rows("transmil", square) == [16, 16]
    assert floors.token_rows("attention_pooling", square) == []
    model = torch.nn.Linear(10, 7)  # 77 parameters, 308 bytes
    features, tokens = 16 * 1024 * 2, 21 * 4 * 512
    moved = floors.moved_bytes
    assert moved("span", model, square, 1024, "forward", "fp32") == features + 308 + 2 * tokens * 4
    assert moved("span", model, square, 1024, "forward", "bf16") == features + 308 + 2 * tokens * 2
    backward = moved("span", model, square, 1024, "forward_backward", "bf16")
    assert backward == 2 * features + 3 * 308 + 5 * tokens * 2
    reached = floors.Machine(bandwidth=2e9, peak=1e12)
    assert floors.floor(4e9, 1_000, reached).seconds == 2.0  # bytes
    assert floors.floor(4e9, 3_000, reached).seconds == 3.0  # operations


@pytest.mark.parametrize("mode", ["forward", "forward_backward"])
def test_operations_of_full_attention_are_those_torch_counts(
    benchmark_module: ModuleType, floors: ModuleType, mode: str
) -> None:
    model, run = benchmark_module.build("full_attention_naive", 40, CPU)

    def once() -> None:
        benchmark_module.one_pass(model, run, mode, CPU, "fp32")

    with floors.ProductRecorder() as recorder, FlopCounterMode(display=False) as counter:
        once()
    ours = floors.model_gflop("full_attention_naive", 40, mode, recorder.shapes, once)
    assert ours == pytest.approx(counter.get_total_flops() / 1e9, rel=1e-6)
    assert ours > floors.dense_gflop(recorder.shapes)


def test_precisions_are_those_of_autocast(benchmark_module: ModuleType, floors: ModuleType) -> None:
    model, run = benchmark_module.build("full_attention_fused", 8, CPU)
    seen = []
    model.classify.register_forward_hook(lambda module, arguments, logits: seen.append(logits.dtype))
    for precision in ("fp32", "bf16", "fp16"):
        benchmark_module.one_pass(model, run, "forward", CPU, precision)
    assert seen == [torch.float32, torch.bfloat16, torch.float16]
    benchmark_module.one_pass(model, run, "forward_backward", CPU, "bf16")
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_on_cuda_all_cells_share_one_process_and_one_failure_costs_one_line(
    benchmark_module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = []

    def measured(cell: Any) -> dict[str, Any]:
        name, patches, mode = cell.name, cell.num_patches, cell.mode
        asked.append((name, patches, mode, str(cell.device), cell.precision, cell.budget_s))
        if name == "full_attention_fused":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        numbers = dict.fromkeys(("seconds", "cpu_seconds", "peak_mb", "ratio_to_matmul", "ratio_to_floor"), 1.0)
        return {"model": name, "patches": patches, "mode": mode, "floor_seconds": 1.0, **numbers}

    def no_process(*words: Any, **options: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(benchmark_module, "measure_cell", measured)
    monkeypatch.setattr(benchmark_module, "available_bytes", lambda device: 2**40)
    monkeypatch.setattr(benchmark_module, "release", lambda device: None)
    monkeypatch.setattr(benchmark_module, "_print_summary", lambda cells: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(subprocess, "run", no_process)
    words = ["model.py", "--device", "cuda", "--precision", "bf16", "--models", "full_attention_fused", "transmil"]
    words += ["--patches", "20", "10", "--modes", "forward", "--json", str(tmp_path / "m.json")]
    monkeypatch.setattr(sys, "argv", words)
    assert benchmark_module.main() == 0
    assert asked == [
        ("full_attention_fused", 10, "forward", "cuda", "bf16", 2.5),
        ("transmil", 10, "forward", "cuda", "bf16", 2.5),
        ("transmil", 20, "forward", "cuda", "bf16", 2.5),  # a larger one of what failed would not fit either
    ]
    assert [cell["patches"] for cell in json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))] == [10, 20]
    printed = capsys.readouterr().out
    assert "a card" in printed
    assert "left out: full_attention_fused, 10 patches, forward: OutOfMemoryError: CUDA out of memory" in printed


@pytest.mark.parametrize(("budget_s", "expected"), [(0.0, 1), (1e9, 12)])
def test_at_most_twelve_repetitions(benchmark_module: ModuleType, budget_s: float, expected: int) -> None:
    calls = []
    walls, cpus = sys.modules["measuring"].repeat(lambda: calls.append(None), CPU, budget_s)
    assert len(walls) == len(cpus) == len(calls) == expected


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `--count` writes for the preset at 10,000 patches."""
    path = tmp_path_factory.mktemp("counts") / "launches.json"
    command = [sys.executable, str(BENCHMARK), "--count", "--patches", "10000", "--json", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    written = json.loads(path.read_text(encoding="utf-8"))
    assert json.loads(result.stdout) == written
    return written


@pytest.mark.slow
def test_a_forward_pass_launches_little_and_never_waits(counts: dict[str, Any]) -> None:
    assert set(counts) == {"launches", "synchronisations", "spconv_map_calls", "by_operation"}
    assert 0 < counts["launches"] <= 200
    assert counts["synchronisations"] == 0
    assert sum(counts["by_operation"].values()) == counts["launches"]
    # per level the cells of the attention and their neighbours, and two steps between three levels
    assert counts["spconv_map_calls"] == {"strided": 3 + 2, "submanifold 3 × 3": 3}


@pytest.mark.slow
def test_the_path_of_a_gpu_is_what_is_counted(counts: dict[str, Any]) -> None:
    by_operation = counts["by_operation"]
    assert by_operation["window_attention"] == 2  # the last stage's locals are read by nobody
    assert by_operation["slide_attention"] == 3 * 6  # per layer as many as the operator says
    assert by_operation["depthwise"] == 2


class Waits(torch.nn.Module):
    """Waits for the device in eleven ways."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        rows = rows * float(rows.sum().item())
        chosen = rows[rows[:, 0] > 0]
        rows[rows < 0] = 0.0
        places = rows.nonzero()
        if rows.max() > 0:  # a truth value
            chosen = chosen + rows.new_tensor([1.0])
        torch.unique(rows)
        rows.masked_select(rows > 1).cpu()
        return chosen + torch.tensor(places[0].tolist()).sum()


def test_the_counter_notices_what_waits(benchmark_module: ModuleType) -> None:
    count, rows = sys.modules["launches"].count, torch.rand(4, 3) + 0.1
    assert count(lambda: Waits()(rows))["synchronisations"] == 11
    calls = {
        "_local_scalar_dense": lambda: rows.sum().item(),
        "is_nonzero": lambda: bool(rows.sum() > 0),
        "index": lambda: rows[rows > 0],
        "index_put_": lambda: rows.clone().__setitem__(rows > 9, 0.0),
        "nonzero": lambda: rows.nonzero(),
        "tolist": lambda: rows.tolist(),
        "cpu": lambda: rows.cpu(),
        "new_tensor": lambda: rows.new_tensor([1.0]),
        "repeat_interleave": lambda: rows.repeat_interleave(torch.arange(4), dim=0),
    }
    for name, call in calls.items():
        counted = count(call)
        assert counted["synchronisations"] == 1, (name, counted)


def test_the_counter_counts_launches_and_nothing_else(benchmark_module: ModuleType) -> None:
    count, rows = sys.modules["launches"].count, torch.rand(4, 3)
    index = torch.tensor([2, 0])
    assert count(lambda: torch.relu(rows @ rows.T))["by_operation"] == {"mm": 1, "relu": 1}
    views = count(lambda: rows.view(3, 4).T[1:].unsqueeze(0).expand(2, -1, -1))
    assert (views["launches"], views["synchronisations"]) == (0, 0)
    assert count(lambda: rows[index])["by_operation"] == {"index": 1}
    assert count(lambda: torch.empty_like(rows))["launches"] == 0
    with_norm = count(lambda: torch.ops.span_sparse.add_norm(rows, None, rows[0], rows[0], 1e-5, torch.float32))
    assert with_norm["by_operation"] == {"add_norm": 1}


def test_one_number_of_patches_is_counted(
    benchmark_module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["model.py", "--count"])
    with pytest.raises(SystemExit, match="expected one number of patches"):
        benchmark_module.main()
