#!/usr/bin/env bash
# Train on all classes of SOURCE, test on DATASET; a model that is there already is used.
#   scripts/cross_dataset.sh TRAINER DATASET SEED [CONFIG] [KEY VALUE ...]
# Environment: DATA (data), OUTPUT (output), SHOTS (16), SOURCE (imagenet).
set -euo pipefail
source "$(dirname "$0")/env.sh"
protocol cross_dataset "$@"
