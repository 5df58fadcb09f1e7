#!/bin/bash
# Train the embedded model on one or several large GPUs of one host in pieces of 25 minutes: stages side by side,
# each as soon as it can.
# Usage: train.sh WORK OBJECTS FLOW_SECONDS [START FIRST]
#   START: folder of weights of an earlier run (train_embedded weights): the autoencoders' latents and the
#   encoders stay, decoders and flows go on, on objects from seed FIRST on.
# WORK gets data, checkpoints, logs, the released folder `model` and `quality-PART.json`.
work=$1 objects=$2 flow_seconds=$3 start=$4 first=${5:-0}
export PYTHONPATH=src:.:$PYTHONPATH PYTHONUNBUFFERED=1 OMP_NUM_THREADS=2
data=$work/data run=$work/run log=$work/log
mkdir -p "$data" "$run" "$log"
[ -n "$start" ] && cp -n "$start"/*.safetensors "$run/"
gpus=$(nvidia-smi -L | wc -l)
began=$SECONDS
say() { echo "$((SECONDS - began)) s: $*" >>"$log/progress.txt"; }
on() { CUDA_VISIBLE_DEVICES=$(($1 % gpus)) "${@:2}"; }
train() { # stages seconds objects options...
  python3 -m trellis2.train_embedded "$1" --data "$data" --run "$run" --seconds "$2" --objects "$3" \
    --device cuda --bfloat16 --log-every 100 "${@:4}" >>"$log/${1//:/_}.txt" 2>&1
  local code=$?
  say "$1 ended with $code"
  return $code
}
compiled() { train "$@" --compile || train "$@"; }
have() { ls "$data" 2>/dev/null | grep -c 'safetensors$'; }
making=()
for ((gpu = 0; gpu < gpus; gpu++)); do
  part=$((objects / gpus / 500 * 500))
  on $gpu python3 -m trellis2.train_embedded data --data "$data" --objects $part --first $((first + gpu * part)) \
    --workers $((gpus > 1 ? 13 : 10)) --device cuda >"$log/data$gpu.txt" 2>&1 &
  making+=($!)
done
until [ "$(have)" -ge 14 ] || ! kill -0 ${making[0]} 2>/dev/null; do sleep 1; done
say "$(have) shards"
if [ -z "$start" ]; then
  on 0 train structure_vae 45 6000 &
  (on 1 train shape_vae 480 6000 && on 1 train shape_decoder 240 6000) & shape=$!
  (on 2 train texture_vae 440 6000 && on 2 train texture_decoder 240 6000) & texture=$!
  wait ${making[*]}
  on 3 compiled encoders 300 "$objects"
  wait $shape $texture
else
  wait ${making[*]}
  on 3 train shape_decoder 900 12000 & shape=$!
  on 3 train texture_decoder 900 12000 & texture=$!
fi
say "data: $(have) shards"
on 0 train encode:structure:pictures 1 "$objects" & one=$!
on 1 train encode:shape 1 "$objects" & two=$!
on 2 train encode:texture 1 "$objects" & three=$!
wait $one $two $three
on 0 compiled structure_flow "$flow_seconds" "$objects" & one=$!
on 1 compiled shape_flow "$flow_seconds" "$objects" & two=$!
on 2 compiled texture_flow "$flow_seconds" "$objects" & three=$!
wait $one $two $three $shape $texture
python3 -m trellis2.train_embedded release --data "$data" --run "$run" --objects "$objects" --device cuda \
  --output "$work/model" >>"$log/release.txt" 2>&1
say "released: $?"
judges=tests/benchmarks/quality/judges.safetensors
quality() { # part options...
  python3 -m tests.benchmarks.embedded_quality --judges $judges --device cuda --only "$1" "${@:2}" \
    --model "$work/model" --json "$work/quality-$1.json" --n 200 >>"$log/quality-$1.txt" 2>&1
  say "quality $1 ended with $?"
}
[ -f $judges ] || python3 -m tests.benchmarks.embedded_quality --train-judges --data "$work/lookup" \
  --judges $judges --device cuda >>"$log/judges.txt" 2>&1
on 0 quality picture --data "$work/lookup" &
on 1 quality text &
on 2 quality novel &
on 3 quality renderer &
on 3 quality strange &
wait
touch "$work/finished"
