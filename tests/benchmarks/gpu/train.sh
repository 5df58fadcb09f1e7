#!/bin/bash
# Train the embedded model on one large GPU in about 25 minutes: stages side by side, each as soon as it can.
# Usage: train.sh WORK OBJECTS FLOW_SECONDS [START]    START: weights of an earlier run (train_embedded weights)
# WORK gets data, checkpoints, logs, the released folder `model` and `quality.json`.
work=$1 objects=$2 flow_seconds=$3 start=$4
export PYTHONPATH=src:. PYTHONUNBUFFERED=1 OMP_NUM_THREADS=2
data=$work/data run=$work/run log=$work/log
mkdir -p "$data" "$run" "$log"
[ -n "$start" ] && cp -n "$start"/*.safetensors "$run/"
began=$SECONDS
say() { echo "$((SECONDS - began)) s: $*" >>"$log/progress.txt"; }
train() { # stages seconds objects options...
  python3 -m trellis2.train_embedded "$1" --data "$data" --run "$run" --seconds "$2" --objects "$3" \
    --device cuda --bfloat16 --log-every 100 "${@:4}" >>"$log/$1.txt" 2>&1
  local code=$?
  say "$1 ended with $code"
  return $code
}
compiled() { train "$@" --compile || train "$@"; }
have() { ls "$data" 2>/dev/null | grep -c 'safetensors$'; }
python3 -m trellis2.train_embedded data --data "$data" --objects "$objects" --workers 10 --device cuda >"$log/data.txt" 2>&1 &
making=$!
if [ -z "$start" ]; then
  until [ "$(have)" -ge 14 ] || ! kill -0 $making 2>/dev/null; do sleep 1; done
  say "$(have) shards"
  train structure_vae 45 6000 &
  train shape_vae 480 6000 & shape=$!
  train texture_vae 440 6000 & texture=$!
fi
wait $making
say "data: $(have) shards"
if [ -z "$start" ]; then
  compiled encoders 300 "$objects" & encoders=$!
  wait $encoders $shape $texture
fi
train encode 1 "$objects"
compiled structure_flow "$flow_seconds" "$objects" & one=$!
compiled shape_flow "$flow_seconds" "$objects" & two=$!
compiled texture_flow "$flow_seconds" "$objects" & three=$!
wait $one $two $three
python3 -m trellis2.train_embedded release --data "$data" --run "$run" --objects "$objects" --device cuda --output "$work/model" >>"$log/release.txt" 2>&1
say "released: $?"
quality() { python3 -m tests.benchmarks.embedded_quality --data "$data" --judges "$work/judges.safetensors" --device cuda "$@" >>"$log/quality.txt" 2>&1; say "quality $* ended with $?"; }
[ -f "$work/judges.safetensors" ] || quality --train-judges
quality --n 200 --model "$work/model" --json "$work/quality.json" --only picture,text,novel
touch "$work/finished"
