# Sourced by quickstart.sh and test.sh: makes or refreshes the virtual environment and activates it.
#
#   QA_TRAIN_VENV     where it lives (default: .venv in the checkout)
#   TORCH_INDEX_URL   package index for torch alone, to choose a CPU or CUDA build (see README.md)
#   PYTHON            the Python 3.11+ to use (default: python3)

venv=${QA_TRAIN_VENV:-$PWD/.venv}

make_venv() {  # make_venv EXTRAS: installs qa-train[EXTRAS] with the pinned versions, once
  local extras=$1 python=${PYTHON:-python3} stamp
  "$python" - <<'PY' || exit 1
import sys
if sys.version_info < (3, 11):
    sys.exit(f"found Python {sys.version.split()[0]}, need 3.11 or newer: set PYTHON=/path/to/python3.11")
PY
  stamp=$(cat pyproject.toml constraints.txt scripts/venv.sh | cksum | tr ' ' '-')-$extras
  if [ "$(cat "$venv/qa-train.stamp" 2>/dev/null)" != "$stamp" ]; then
    echo "installing the pinned packages into $venv (about 2 GB with a CPU build of torch; 2 to 5 minutes)"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || {
      echo "could not make a virtual environment: on Debian and Ubuntu install the package python3-venv"; exit 1; }
    local pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt)
    "${pip[@]}" torch ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} || exit 1
    "${pip[@]}" -e ".[$extras]" || exit 1
    # It declares desktop audio libraries that rendering to memory does not use, hence --no-deps.
    "${pip[@]}" --no-deps tinysoundfont || exit 1
    echo "$stamp" > "$venv/qa-train.stamp"
  fi
  export PATH=$venv/bin:$PATH
}
