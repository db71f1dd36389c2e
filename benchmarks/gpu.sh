#!/usr/bin/env bash
# Checks and measures everything that needs a GPU, on a Linux machine whose python3 brings torch with CUDA; offline.
#
#   bash benchmarks/gpu.sh OUT_DIR [flags of python -m benchmarks.gpu]
#
# OUT_DIR/gpu.json holds the figures, OUT_DIR/tests.log the tests that need a GPU. Under 10 minutes.
# The other packages come from this Python, or from the directory SITE (with shared libraries in SITE/.lib).
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:?usage: bash benchmarks/gpu.sh OUT_DIR [flags]}")
shift
mkdir -p "$out"
python=${PYTHON:-python3}
if [ -n "${SITE:-}" ]; then
  export PYTHONPATH="$PWD:$SITE" LD_LIBRARY_PATH="$SITE/.lib:${LD_LIBRARY_PATH:-}"
fi
export PYTHONUNBUFFERED=1

status=0
# Without this project's pytest settings: their plugins need not be there.
timeout 150 "$python" -m pytest -q -c /dev/null --rootdir "$PWD" -p no:cacheprovider -m gpu \
  --import-mode=importlib -o pythonpath=. -o markers=gpu tests/actors tests/learner >"$out/tests.log" 2>&1 || status=$?
tail -n 3 "$out/tests.log"
timeout 420 "$python" -m benchmarks.gpu --out "$out/gpu.json" "$@" >/dev/null || status=$?
exit "$status"
