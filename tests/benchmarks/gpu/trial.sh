#!/bin/bash
# A short look at a GPU machine: kernels, rates of the dataset and of every training stage, the 4B networks.
# Usage: tests/benchmarks/gpu/trial.sh OUT [OBJECTS] [SECONDS]
out=$1 objects=${2:-4000} seconds=${3:-20}
export PYTHONPATH=src:. PYTHONUNBUFFERED=1
data=$out/data run=$out/run
mkdir -p "$data" "$run"
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
(timeout 240 python3 -m pytest tests/kernels -q --continue-on-collection-errors -p no:cacheprovider >"$out/kernels.txt" 2>&1) &
tests=$!
start=$(date +%s.%N)
python3 -m trellis2.train_embedded data --data "$data" --objects "$objects" --workers 10 --device cuda >"$out/data.txt" 2>&1
echo "data: $objects objects in $(echo "$(date +%s.%N) - $start" | bc 2>/dev/null || python3 -c "import time;print(time.time()-$start)") s"; tail -2 "$out/data.txt"
for stage in encoders structure_vae shape_vae texture_vae structure_flow shape_flow texture_flow; do
  echo "== $stage"
  timeout 120 python3 -m trellis2.train_embedded $stage --data "$data" --run "$run" --seconds "$seconds" --device cuda --bfloat16 --no-cache --log-every 20 >"$out/$stage.txt" 2>&1
  tail -4 "$out/$stage.txt"
done
wait $tests
tail -15 "$out/kernels.txt"
