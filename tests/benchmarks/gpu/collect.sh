#!/bin/bash
# What a training run on another machine brings home: logs, weights and the released folder, in pieces of 15 MB.
# Usage: collect.sh WORK OUT; at home: cat OUT/part.* | tar xz
work=$1 out=$2
export PYTHONPATH=src:.
python3 -m trellis2.train_embedded weights --data "$work/data" --run "$work/run" --output "$work/weights"
cp "$work"/run/*.jsonl "$work/log/" 2>/dev/null
(cd "$work" && tar czf - $(ls -d log weights model quality*.json judges.safetensors 2>/dev/null)) | split -b 15000000 - "$out/part."
cat "$work/log/progress.txt"
for file in "$work"/log/*.txt; do echo "== $file"; tail -n "${3:-2}" "$file" | cut -c1-400; done
nvidia-smi --query-gpu=memory.used,utilization.gpu --format=csv,noheader
