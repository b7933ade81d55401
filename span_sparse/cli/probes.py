"""Probes of libraries, each in a process of its own so that its crash harms nobody.

Each `*_PROBE` is Python code for a fresh interpreter that prints one JSON object; `probe` runs it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
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
from span_sparse.float32 import off_by_default
from span_sparse.sparse.backend import probe
off_by_default()
print(json.dumps(probe("cuda" if torch.cuda.is_available() else "cpu")))
"""
"""Errors of float32 convolutions here, with the switches of TF32 as the commands that train and predict set them."""

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
    # this package, wherever it was started from: a source folder need not be installed
    here = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
            env={**os.environ, "PYTHONPATH": here},
        )  # fmt: skip
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
