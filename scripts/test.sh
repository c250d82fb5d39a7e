#!/usr/bin/env bash
# The test command: its own virtual environment, then lint, types and the tests.
#   scripts/test.sh                          lint, types, and all tests but the slow ones
#   scripts/test.sh -m slow                  the slow ones: end-to-end runs, several processes, SLURM, a browser
#   scripts/test.sh [pytest arguments]       e.g. scripts/test.sh tests/data -k plan
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh
make_venv dev
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 WANDB_MODE=offline TOKENIZERS_PARALLELISM=false
if [ $# -eq 0 ]; then
  echo "lint and types (about a minute), then the tests (about ten minutes on two cores)"
  ruff check .
  ruff format --check .
  mypy
  set -- -m "not slow"
fi
exec python -m pytest -n 2 --dist worksteal "$@"
