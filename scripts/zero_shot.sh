#!/usr/bin/env bash
# A model without training, on base, new and all classes.
#   scripts/zero_shot.sh TRAINER DATASET SEED [CONFIG] [KEY VALUE ...]
# Environment: DATA (data), OUTPUT (output).
set -euo pipefail
source "$(dirname "$0")/env.sh"
protocol zero_shot "$@"
