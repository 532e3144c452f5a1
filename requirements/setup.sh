#!/usr/bin/env bash
# Finds a Python that will do and has it build .venv: requirements/setup.py. `make setup` calls it.
#
# PYTHON=/path/to/python3.12 picks the interpreter. pip's own settings (PIP_INDEX_URL, pip.conf) hold throughout.
set -euo pipefail
cd "$(dirname "$0")/.."

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

for candidate in ${PYTHON:-.venv/bin/python python3.11 python3.12 python3.13 python3}; do
    if is_new_enough "$candidate"; then
        # Of a virtual environment the interpreter that it was made with, which also can make it anew.
        base=$("$candidate" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))')
        exec "$base" requirements/setup.py "${1:-run}"
    fi
done
echo "setup: ${PYTHON:-python3} is not Python 3.11 or newer; install one, or name it: make setup PYTHON=/path/to/python3.12" >&2
exit 1
