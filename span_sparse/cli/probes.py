"""Does a library work here, asked in a process of its own so that its crash harms nobody?

Each `*_PROBE` is Python code for a fresh interpreter that prints one JSON object; `probe` runs it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Final

TIMEOUT_S: Final = 120

TORCH_PROBE: Final = """
import json, torch
found = torch.cuda.is_available()
print(json.dumps({
    "version": torch.__version__, "cuda": torch.version.cuda, "threads": torch.get_num_threads(),
    "gpus": [f"{torch.cuda.get_device_name(i)}, {torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB"
             for i in range(torch.cuda.device_count())] if found else [],
}))
"""
SPCONV_PROBE: Final = """
import json, torch
import spconv.pytorch as spconv
from spconv.core import ConvAlgo
cuda = torch.cuda.is_available()
device, algo = ("cuda", ConvAlgo.MaskImplicitGemm) if cuda else ("cpu", ConvAlgo.Native)
torch.manual_seed(0)
dense = torch.zeros(1, 3, 6, 8)
sites = torch.tensor([[0, 0, 0], [0, 1, 1], [0, 2, 5], [0, 5, 7], [0, 4, 6]], dtype=torch.int32)
values = torch.randn(5, 3)
dense[0, :, sites[:, 1].long(), sites[:, 2].long()] = values.T
conv = spconv.SparseConv2d(3, 4, 2, stride=2, bias=False, algo=algo).to(device)
leaf = values.to(device).requires_grad_()
out = conv(spconv.SparseConvTensor(leaf, sites.to(device), [6, 8], 1)).dense()
out.square().sum().backward()
weight = conv.weight.detach().cpu().permute(0, 3, 1, 2).contiguous().requires_grad_()
expected = torch.nn.functional.conv2d(dense, weight, stride=2)
expected.square().sum().backward()
gradient = conv.weight.grad.cpu().permute(0, 3, 1, 2)
error = max(float((out.detach().cpu() - expected).abs().max()), float((gradient - weight.grad).abs().max()))
print(json.dumps({"device": device, "algorithm": "implicit GEMM" if cuda else "Native", "error": error}))
"""

NUMPY_PROBE: Final = "import numpy; from cumm import tensorview; tensorview.from_numpy(numpy.zeros(3, 'int32'))"
"""Whether spconv's conversion of numpy arrays survives; with numpy 2, spconv-cu120 2.3.6 divides by zero here."""

OPENSLIDE_PROBE: Final = "import json, openslide; print(json.dumps({'version': openslide.__library_version__}))"


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a process of its own answered.

    Attributes:
        answer: the JSON object it printed, `{}` when it printed nothing.
        failure: why there is no answer, `None` when it ended well.
        killed_by: the signal that ended it, 0 for none.
    """

    answer: dict[str, Any]
    failure: str | None
    killed_by: int = 0


def probe(code: str) -> ProbeResult:
    """Run Python code in a process of its own and read the JSON object on its last line."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return ProbeResult({}, f"no answer within {TIMEOUT_S} s")
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return ProbeResult({}, f"killed by {name} (exit code {128 - done.returncode})", -done.returncode)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return ProbeResult({}, lines[-1])
    lines = done.stdout.strip().splitlines()
    try:
        return ProbeResult(json.loads(lines[-1]) if lines else {}, None)
    except ValueError:
        return ProbeResult({}, f"unexpected answer: {lines[-1]:.200}")
