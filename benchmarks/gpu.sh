#!/usr/bin/env bash
# Tests and measures everything that needs a GPU, offline, on a Linux machine whose python3 has torch with CUDA.
#
#   bash benchmarks/gpu.sh OUT_DIR [flags of python -m benchmarks.gpu]
#
# Writes the figures to OUT_DIR/gpu.json and the output of the GPU tests to OUT_DIR/tests.log in under 10 minutes.
# The other packages come from this Python, or from the directory SITE (with shared libraries in SITE/.lib).
set -euo pipefail
# Paths are relative to the caller's directory.
out=$(realpath -m "${1:?usage: bash benchmarks/gpu.sh OUT_DIR [flags]}")
shift
mkdir -p "$out"
python=${PYTHON:-python3}
case $python in
/*) ;;
*/*) python=$PWD/$python ;;  # not realpath: a virtual environment's python is a link
esac
site=${SITE:+$(realpath -m "$SITE")}
cd "$(dirname "$0")/.."
if [ -n "$site" ]; then
  export PYTHONPATH="$PWD:$site" LD_LIBRARY_PATH="$site/.lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi
export PYTHONUNBUFFERED=1

status=0
# Ignores this project's pytest settings, whose plugins may not be installed.
timeout 150 "$python" -m pytest -q -c /dev/null --rootdir "$PWD" -p no:cacheprovider -m gpu \
  --import-mode=importlib -o pythonpath=. -o markers=gpu tests/actors tests/learner >"$out/tests.log" 2>&1 || status=$?
tail -n 3 "$out/tests.log"
timeout 420 "$python" -m benchmarks.gpu --out "$out/gpu.json" "$@" >/dev/null || status=$?
exit "$status"
