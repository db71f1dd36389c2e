#!/usr/bin/env bash
# `make setup`: creates .venv, installs the pinned packages and steps one Procgen environment.
# PYTHON names the interpreter. Prints nothing if nothing changed; after an interruption, run it again.
set -euo pipefail
cd "$(dirname "$0")/.."

libraries="libgl1 libglib2.0-0"
say() { printf 'setup: %s\n' "$*"; }
fail() {
  printf 'setup: %s\n' "$*" >&2
  exit 1
}
version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
supported() { case $1 in 3.10 | 3.11 | 3.12 | 3.13) ;; *) return 1 ;; esac; }

# A second set-up in this directory waits for the first and then finds nothing to do.
# NFS locks only files that are open for writing. Without locks two set-ups must not run at the same time.
if command -v flock >/dev/null && { exec 9>>tools/setup.sh; } 2>/dev/null; then
  flock 9 2>/dev/null || true
fi

# The stamp records what .venv was made from: this directory, to which the editable install and the programs in
# .venv/bin point, and the files that say what to install.
directory=$(pwd -P)
venv_version=$(version .venv/bin/python || true)
wanted=$(printf '%s\n' "$directory" "$(cksum pyproject.toml constraints.txt procgen-gym.txt tools/setup.sh)")
if [ -n "${PYTHON:-}" ]; then
  chosen_version=$(version "$PYTHON") || {
    reason=$("$PYTHON" -c 'import sys; sys.version_info.major' 2>&1 | grep -m 1 . || true)
    fail "PYTHON=$PYTHON does not run${reason:+ ($reason)}; name a Python 3.10 to 3.13"
  }
  supported "$chosen_version" || fail "PYTHON=$PYTHON is Python $chosen_version; Heldout needs 3.10 to 3.13"
else
  chosen_version=$venv_version
fi
if [ -n "$venv_version" ] && [ "$venv_version" = "$chosen_version" ] &&
  [ "$(cat .venv/.heldout-setup 2>/dev/null)" = "$wanted" ]; then
  exit 0
fi

# Recreate a .venv that is incomplete, was moved here, or has another Python or one that no longer exists.
if [ -e .venv/.heldout-incomplete ] || ! grep -qsF "$directory/.venv/" .venv/bin/pip ||
  [ "$venv_version" != "$chosen_version" ] || ! supported "$venv_version"; then
  rm -rf .venv
fi
if [ ! -e .venv ]; then
  candidates=(python3 python3.13 python3.12 python3.11 python3.10)
  if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
  for python in "${candidates[@]}"; do
    venv_version=$(version "$python" || true)
    if supported "$venv_version"; then break; fi
  done
  supported "$venv_version" || fail "no Python 3.10 to 3.13 found; install one (Debian 12 and 13, Ubuntu 22.04 and" \
    "24.04: sudo apt-get install -y python3 python3-venv) or name one: make setup PYTHON=/path/to/python3.12"
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python has no venv module; run: sudo apt-get install -y python$venv_version-venv"
  say "creating .venv with Python $venv_version"
  mkdir .venv
  touch .venv/.heldout-incomplete
  "$python" -m venv .venv || {
    rm -rf .venv
    fail "$python -m venv .venv failed"
  }
fi

say "installing packages (several minutes the first time)"
touch .venv/.heldout-incomplete
rm -f .venv/.heldout-setup
export PIP_DISABLE_PIP_VERSION_CHECK=1
pip=(.venv/bin/python -m pip install --constraint constraints.txt)
[ -t 1 ] || pip+=(--quiet)
# The build backend first, so that no other version of it builds the package.
"${pip[@]}" "$(grep -o 'setuptools==[0-9.]*' pyproject.toml)"
# On Python 3.13 (its marker says so), the build of Procgen whose hash is known.
"${pip[@]}" --no-deps --require-hashes --requirement procgen-gym.txt
"${pip[@]}" --no-build-isolation --editable '.[dev]'
rm .venv/.heldout-incomplete

# Sets `missing` to the system library that Procgen lacks, or to nothing if Procgen runs.
step_procgen() {
  missing=$(.venv/bin/python -c '
from common.procgen_env import MissingLibrary, step_once
try:
    step_once()
except MissingLibrary as missing:
    print(missing)') || fail "Procgen does not run (above)"
}
step_procgen
if [ -n "$missing" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  say "Procgen needs $missing: installing $libraries"
  export DEBIAN_FRONTEND=noninteractive
  install="apt-get install -y -qq --no-install-recommends $libraries"
  $install >/dev/null 2>&1 || { apt-get update -qq && $install >/dev/null; } || true
  step_procgen
fi
[ -z "$missing" ] || fail "Procgen needs $missing; run: sudo apt-get install -y $libraries"

printf '%s\n' "$wanted" >.venv/.heldout-setup
say "ready"
