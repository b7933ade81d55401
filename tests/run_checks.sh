#!/usr/bin/env bash
# Every check of the project, with the time each took. Arguments go to pytest.
#   pip install -e '.[dev]' && bash tests/run_checks.sh
# All checks run even if an early one fails; the exit code is 1 if any failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

summary=()
failed=0

check() { # name, command...
    local name="$1" start=$SECONDS outcome=ok
    shift
    printf '\n== %s\n' "$name"
    "$@" || { outcome=FAILED; failed=1; }
    summary+=("$(printf '%-14s %-7s %4d s' "$name" "$outcome" $((SECONDS - start)))")
}

check "ruff format" ruff format --check .
check "ruff check" ruff check .
check "pyright" pyright
check "lint-imports" lint-imports
# Two workers with one thread each; the verbosity gives pytest's ordinary closing line.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
check "pytest" python -m pytest --numprocesses 2 --verbosity 0 --durations 10 "$@"

printf '\n== checks\n'
printf '%s\n' "${summary[@]}"
if ((failed)); then echo "FAILED"; else echo "all checks passed"; fi
exit "$failed"
