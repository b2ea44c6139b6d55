#!/usr/bin/env bash
# Train on the base classes, test on them and on the new ones; what is complete is skipped.
#   scripts/base_to_new.sh TRAINER DATASET SEED [CONFIG] [KEY VALUE ...]
# Environment: DATA (data), OUTPUT (output), SHOTS (16).
set -euo pipefail
source "$(dirname "$0")/env.sh"
protocol base_to_new "$@"
