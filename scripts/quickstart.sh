#!/usr/bin/env bash
# From a bare machine to a model that has learned from real speech: installs, makes data, trains
# the three stages, evaluates after each, exports, and writes a report. It measures first how long
# this machine will take (README.md has some); the same command continues after an interruption
# and does nothing twice.
#   scripts/quickstart.sh [FOLDER] [--short]        (default: runs/quickstart, or runs/quickstart-short)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh
SECONDS=0
make_venv quickstart,tracking
export QUICKSTART_INSTALL_SECONDS=$SECONDS
# Waiting threads sleep instead of spinning: a busy laptop would be many times slower otherwise.
export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec python scripts/quickstart.py "$@"
