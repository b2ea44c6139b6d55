#!/usr/bin/env bash
# All that wants a GPU, on a machine with one and without internet: tests, speed, a suite, a profile.
#   scripts/gpu_check.sh [--output DIR] [--only tests methods suite profile] [--cpu]
set -euo pipefail
source "$(dirname "$0")/env.sh"
exec "$PYTHON" benchmarks/gpu_check.py "$@"
