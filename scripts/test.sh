#!/usr/bin/env bash
# Lint and tests: scripts/test.sh [pytest options]
set -euo pipefail
source "$(dirname "$0")/env.sh"

status=0
"$PYTHON" -m ruff check . || status=1
"$PYTHON" -m ruff format --check . || status=1
"$PYTHON" -m pytest -q "$@" || status=1
exit "$status"
