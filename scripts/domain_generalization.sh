#!/usr/bin/env bash
# Train on all classes of SOURCE, test on DATASET, a shifted variant of it.
#   scripts/domain_generalization.sh TRAINER DATASET SEED [CONFIG] [KEY VALUE ...]
# Environment: DATA (data), OUTPUT (output), SHOTS (16), SOURCE (imagenet).
set -euo pipefail
source "$(dirname "$0")/env.sh"
protocol domain_generalization "$@"
