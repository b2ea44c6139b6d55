#!/usr/bin/env bash
# 1, 2, 4, 8 and 16 images per class: base-to-new, and all classes.
#   scripts/few_shot.sh TRAINER DATASET SEED [CONFIG] [KEY VALUE ...]
# Environment: DATA (data), OUTPUT (output), SHOTS ("1 2 4 8 16").
set -euo pipefail
source "$(dirname "$0")/env.sh"
protocol few_shot "$@"
