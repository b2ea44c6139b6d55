#!/usr/bin/env bash
# Lint, types and tests: scripts/test.sh [pytest options]
set -euo pipefail
source "$(dirname "$0")/env.sh"

status=0
"$PYTHON" -m ruff check . || status=1
"$PYTHON" -m ruff format --check . || status=1
"$PYTHON" -m mypy || status=1
# A module's tests stay in one process, for their fixtures' sake, and modules in the order of
# collection: by their number of tests, some of the longest would come last.
"$PYTHON" -m pytest -q --numprocesses auto --maxprocesses 8 \
    --dist loadscope --no-loadscope-reorder "$@" || status=1
exit "$status"
