#!/usr/bin/env bash
# Builds .venv with everything that a CPU machine needs to run and to test rayqd. `make setup` calls it.
#
# PYTHON=/path/to/python3.12 picks the interpreter. pip's own settings (PIP_INDEX_URL, pip.conf) hold throughout.
set -euo pipefail
cd "$(dirname "$0")/.."

REQUIREMENTS=requirements/cpu.txt
TORCH=$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' "$REQUIREMENTS")
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
LOG=$(mktemp)
trap 'rm -f "$LOG"' EXIT

say() { echo "setup: $*"; }
fail() {
    echo "setup: failed at $1" >&2
    sed 's/^/    /' "$LOG" | tail -n 15 >&2
    echo "setup: $2" >&2
    exit 1
}
pip() { .venv/bin/python -m pip --disable-pip-version-check --no-input -qq "$@" >"$LOG" 2>&1; }
is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if is_new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# The CPU build is 0.2 GB, the default one for Linux several: take the former wherever it is to be had.
install_torch() {
    say "[2/4] torch $TORCH, CPU build"
    pip install --no-deps "torch==$TORCH+cpu" && return
    say "      not where pip looks; trying $TORCH_CPU_INDEX"
    pip --retries 1 --timeout 20 install --no-deps --index-url "$TORCH_CPU_INDEX" "torch==$TORCH+cpu" && return
    say "      not there either; taking the default build, which may be some GB"
    pip install "torch==$TORCH" || fail "[2/4] torch" "check that pip reaches its package index, then run \`make setup\` again"
}

python=$(find_python) || {
    echo "setup: ${PYTHON:-python3} is not Python 3.11 or newer; install one, or name it: make setup PYTHON=/path/to/python3.12" >&2
    exit 1
}

if is_new_enough .venv/bin/python; then
    say "[1/4] .venv is there ($(.venv/bin/python -V))"
else
    say "[1/4] creating .venv with $("$python" -V)"
    "$python" -m venv --clear .venv >"$LOG" 2>&1 ||
        fail "[1/4] .venv" "Python's venv module is incomplete; on Debian and Ubuntu: apt install python3-venv"
fi

install_torch

say "[3/4] $(grep -c '==' "$REQUIREMENTS") packages of $REQUIREMENTS"
pip install --no-deps -r "$REQUIREMENTS" ||
    fail "[3/4] packages" "check that pip reaches its package index and that the disk has 8 GiB left, then run \`make setup\` again"

say "[4/4] rayqd itself"
pip install --no-deps -e . || fail "[4/4] rayqd" "run \`.venv/bin/python -m pip install --no-deps -e .\` to see all of it"

say "done; next: make quickstart, or .venv/bin/rayqd doctor"
