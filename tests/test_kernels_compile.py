"""Every Triton kernel compiles for a GPU, on a machine without one: its interpreter accepts more than its compiler."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: pip install triton", allow_module_level=True)

COMPILE = """
import importlib, pkgutil
from typing import Any
import span_sparse
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

INDICES = {"tokens", "seen", "cells", "slides", "offsets", "table", "coords", "pairs", "neighbours", "first"}
WINDOW = dict(HEADS=8, CHANNELS=64, SIDE=3, REACH=0, HAS_BIAS=True, BLOCK_Q=16, BLOCK_K=64, BLOCK_D=64,
              PRECISION="ieee")
SLIDES = dict(width=512, columns=8, stride_row=512, slide_stride=3, ROWS=64, COLUMNS=16, WIDTH=64, PRECISION="ieee")
CONSTANTS = {
    "forward_kernel": WINDOW,
    "query_gradient_kernel": WINDOW | dict(TRAIN_BIAS=True),
    "key_gradient_kernel": WINDOW,
    "_matmul": SLIDES | dict(stride_slide=4096, stride_column=512, stride_width=1),
    "_score": SLIDES,
    "_score_gradient": SLIDES,
    "_outer": dict(num_weights=8, width=512, stride_row=512, slide_stride=3, SCORES=True, ROWS=64, WEIGHTS=16, WIDTH=64,
                   PRECISION="ieee"),
    "_add_parts": dict(num_weights=8, width=512, HAS_OTHERS=True, PARTS=16, ENTRIES=128),
    "_log_sums": dict(columns=8, PARTS=64, COLUMNS=16),
    "_forward": dict(width=512, HAS_BRANCH=True, KEEP=True, ROWS=4, WIDTH=512),
    "_backward": dict(width=512, HAS_TOTAL=True, ROWS=4, WIDTH=512),
    "_gather": dict(channels=512, TAPS=4, ROWS=16, CHANNELS=128),
    "_tap_gradients": dict(channels=512, TAPS=4, ROWS=16, CHANNELS=128),
    "_pair_table": dict(TAPS=4, BLOCK=256),
    "_seen_tokens": dict(SLOTS=9, COLUMNS=63, BLOCK=256),
    "_resize": dict(num_taps=4, block=16),
}
OTHER_TYPES = {"pixels": "*u8", "scale": "fp32", "eps": "fp32"}


def signature(kernel: Any, constants: dict) -> dict:
    types = {}
    for name in kernel.arg_names:
        number = name.startswith("num_") or name in ("block", "group", "edge", "crop_px", "start")
        rows = name in ("qkv", "grad", "output", "dqkv", "rows", "queries", "features", "branch", "total", "normed")
        types[name] = (
            "constexpr" if name in constants
            else OTHER_TYPES.get(name)
            or ("*i32" if name in INDICES else "i32" if number else "*bf16" if rows else "*fp32")
        )
    if kernel.__name__ == "_resize":
        types |= {"weights": "*i32", "output": "*fp32"}
    if kernel.__name__ in ("_score_gradient", "_add_parts", "_log_sums"):
        types |= {name: "*fp32" for name in ("grad", "output") if types.get(name) == "*bf16"}
    return types


found = set()
for module in pkgutil.walk_packages(span_sparse.__path__, "span_sparse."):
    if not module.name.endswith(("_kernels", "_kernel")):
        continue
    for name, kernel in vars(importlib.import_module(module.name)).items():
        if isinstance(kernel, triton.JITFunction) and name in CONSTANTS:
            constants = CONSTANTS[name]
            source = ASTSource(fn=kernel, signature=signature(kernel, constants), constexprs=constants)
            assert "cubin" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm
            found.add(name)
        elif isinstance(kernel, triton.JITFunction):  # called by the others
            assert name in ("_seen_places", "_displacements", "_load_cell", "_rows", "_store_rows"), name
assert found == set(CONSTANTS), set(CONSTANTS) - found
print("compiled", len(found))
"""


@pytest.mark.slow
def test_every_kernel_compiles_for_a_gpu() -> None:
    """Compute capability 9.0; in a process of its own, without the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.stdout.startswith("compiled 16"), done.stderr[-3000:]
