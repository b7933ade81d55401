"""What does context add? SPAN against two baselines that do not see where patches lie, over several seeds.

Every run is the command a user would type, `span fit --config experiments/NAME.yaml --seed_everything S`, so features,
splits, the rule that selects the epoch and the test are the same; only network, learning rate and epochs are each
network's own. The demo cohort's classes have the same patches in different places: what the baselines get above 0.5 is
chance, what SPAN gets is context.

    python experiments/compare_context.py

prints mean and spread of the test AUC and writes `runs/span-demo/comparison.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from span_sparse.files import write_atomically

EXPERIMENTS = Path(__file__).parent
NETWORKS = ("span", "mean_pooling", "attention_pooling")


def main() -> int:
    parser = argparse.ArgumentParser(description="Test AUC of SPAN, mean pooling and attention pooling on the demo.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--runs", type=Path, default=Path("runs/comparison"), help="folder of the runs")
    parser.add_argument("--output", type=Path, default=Path("runs/span-demo/comparison.json"), help="the result")
    parser.add_argument(
        "overrides", nargs="*", help="given to every run, for example --trainer.max_epochs=2 (after --)"
    )
    args = parser.parse_args()
    console = Console(highlight=False)
    by_seed: dict[str, dict[str, float]] = {name: {} for name in NETWORKS}
    for name in NETWORKS:
        for seed in args.seeds:
            started = time.monotonic()
            auc = test_auc(name, seed, args.runs / f"{name}-seed-{seed}", args.overrides)
            by_seed[name][str(seed)] = auc
            console.print(f"{name:<18} seed {seed}: test AUC {auc:.3f} ({time.monotonic() - started:.0f} s)")
    result = summary(by_seed)
    write_atomically(args.output, (json.dumps(result, indent=2) + "\n").encode())
    table = Table("network", "test AUC, mean", "± standard deviation", "by seed", title=f"{len(args.seeds)} seeds")
    for name in NETWORKS:
        values = ", ".join(f"{value:.3f}" for value in by_seed[name].values())
        table.add_row(name, f"{result[name]:.3f}", f"{result['std'][name]:.3f}", values)
    console.print(table)
    console.print(f"written: {args.output}")
    return 0


def test_auc(name: str, seed: int, run_dir: Path, overrides: list[str]) -> float:
    """Train one network with one seed and return its test AUC; a failed run ends the comparison with its output."""
    command = [
        sys.executable, "-m", "span_sparse", "fit", "--config", str(EXPERIMENTS / f"{name}.yaml"),
        f"--seed_everything={seed}", f"--data.init_args.seed={seed}", f"--trainer.default_root_dir={run_dir}",
        *overrides,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}failed with exit code {done.returncode}")
    return json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))["test"]["auc"]


def summary(by_seed: dict[str, dict[str, float]]) -> dict[str, object]:
    """Mean of every network at the top level, and what it was computed from; the spread of one seed is null."""
    values = {name: list(aucs.values()) for name, aucs in by_seed.items()}
    spread = {name: statistics.stdev(aucs) if len(aucs) > 1 else math.nan for name, aucs in values.items()}
    return {
        **{name: statistics.fmean(aucs) for name, aucs in values.items()},
        "std": {name: None if math.isnan(value) else value for name, value in spread.items()},
        "by_seed": by_seed,
        "figure": "AUC on the test split of the demo cohort, epoch selected by the lowest validation loss",
    }


if __name__ == "__main__":
    sys.exit(main())
