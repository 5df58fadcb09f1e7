#!/bin/bash
# Train the embedded model on one large GPU in pieces of 25 minutes: stages side by side, each as soon as it can.
# Usage: train.sh WORK OBJECTS FLOW_SECONDS [START FIRST]
#   START: folder of weights of an earlier run (train_embedded weights): the autoencoders' latents and the
#   encoders stay, decoders and flows go on, on objects from seed FIRST on.
# WORK gets data, checkpoints, logs, the released folder `model` and `quality.json`.
work=$1 objects=$2 flow_seconds=$3 start=$4 first=${5:-0}
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
python3 -m trellis2.train_embedded data --data "$data" --objects "$objects" --first "$first" --workers 10 \
  --device cuda >"$log/data.txt" 2>&1 &
making=$!
until [ "$(have)" -ge 14 ] || ! kill -0 $making 2>/dev/null; do sleep 1; done
say "$(have) shards"
if [ -z "$start" ]; then
  train structure_vae 45 6000 &
  (train shape_vae 480 6000 && train shape_decoder 240 6000) & shape=$!
  (train texture_vae 440 6000 && train texture_decoder 240 6000) & texture=$!
  wait $making
  compiled encoders 300 "$objects"
  wait $shape $texture
else
  train shape_decoder 900 6000 & shape=$!
  train texture_decoder 900 6000 & texture=$!
  wait $making
fi
say "data: $(have) shards"
train encode 1 "$objects"
compiled structure_flow "$flow_seconds" "$objects" & one=$!
compiled shape_flow "$flow_seconds" "$objects" & two=$!
compiled texture_flow "$flow_seconds" "$objects" & three=$!
wait $one $two $three $shape $texture
python3 -m trellis2.train_embedded release --data "$data" --run "$run" --objects "$objects" --device cuda \
  --output "$work/model" >>"$log/release.txt" 2>&1
say "released: $?"
judges=tests/benchmarks/quality/judges.safetensors
quality() {
  python3 -m tests.benchmarks.embedded_quality --judges $judges --device cuda "$@" >>"$log/quality.txt" 2>&1
  say "quality $* ended with $?"
}
[ -f $judges ] || quality --train-judges --data "$data"
for part in text picture novel; do
  quality --n 200 --model "$work/model" --json "$work/quality.json" --only $part
done
touch "$work/finished"
