#!/usr/bin/env bash
# The main job on an embedded default: zero-shot CLIP, CoOp and DePT on CoOp over three seeds on the
# mini world, then the table and a picture. What is complete is skipped, so it can be interrupted.
# Environment: DATA (data), OUTPUT (output/quickstart).
set -euo pipefail
source "$(dirname "$0")/env.sh"

data=${DATA:-data}
output=${OUTPUT:-output/quickstart}
status=0

echo "Training on base classes, testing on base and on new ones; about 2 minutes on 2 cores …"
"$PYTHON" scripts/run_protocol.py base_to_new --root "$data" --output "$output" \
    --jobs "${JOBS:-$(getconf _NPROCESSORS_ONLN)}" --trainers ZeroshotCLIP CoOp DePT_CoOp \
    --datasets mini_shapes mini_fabrics mini_scenes mini_badges --seeds 1-3 || status=$?

echo
"$PYTHON" scripts/parse_results.py "$output" --plot "$output/base_new.png" \
    --html "$output/report.html" || status=$?

cat <<END

The mini world is a fixture and a demonstration; its numbers are no evidence for the paper.
    logs           $output/base2new/*/*/shots_16/<Trainer>/mini/seed<N>/log.txt
    checkpoints    $output/base2new/train_base/*/shots_16/<Trainer>/mini/seed<N>/*/model.pth.tar-*
    picture        $output/base_new.png
    report         $output/report.html
END
exit "$status"
