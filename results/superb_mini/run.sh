#!/usr/bin/env bash
# The student, then all tasks for the three upstreams. DATA: minisuperb; TEACHER: hubert_small; OUT: where runs go.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
table() { python3 scripts/superb_table.py --data "$DATA" --out "$OUT" --settings "$here/schedule.yaml" "$@"; }

distil() {
    python3 run_pretrain.py -u distiller -p "$OUT/distil" -a --teacher "$TEACHER" --data "$DATA/pretrain.jsonl" \
        -o runner.total_steps=3000,runner.eval_step=500,runner.save_step=1000,runner.log_step=100,runner.max_keep=1
}
distil > "$OUT.distil.txt" 2>&1 &
table --upstream fbank=fbank --upstream "hubert_small=$TEACHER" --jobs "${JOBS:-6}" > /dev/null &
wait %1
table --upstream "student=$OUT/distil/states-3000.ckpt" --jobs "${JOBS:-6}" > /dev/null
# fbank of s3prl has a mean of zero over time, which is all that a pooled head sees: the same without that.
table --upstream fbank_no_cmvn=fbank_no_cmvn --tasks ks,ic,sid,sid_1s,er --jobs "${JOBS:-6}" > /dev/null
wait
table --table --upstream fbank=fbank --upstream fbank_no_cmvn=x --upstream hubert_small=x --upstream student=x
