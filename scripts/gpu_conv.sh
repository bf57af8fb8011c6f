#!/bin/sh
# Convolution with ReLU on a machine with a GPU: gpu_conv.sh FOLDER [COMMIT]. Correctness first, then
# the benchmark's essentials, in under eight minutes; FOLDER gets conv.log and the rows, conv.jsonl.
set -u
cd "$(dirname "$0")/.." || exit
folder=${1:?a folder for the results}
python=${PYTHON:-$(scripts/interpreter.sh)}
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
mkdir -p "$folder"
{
  timeout 150 "$python" -m pytest -q -m gpu -p no:cacheprovider tests/ops/test_depthwise.py \
    tests/ops/test_grouped.py tests/ops/test_stem.py tests/ops/test_rectify.py tests/gpu/test_conv_cuda.py
  for part in forward training host; do
    timeout 110 "$python" -m benchmarks.conv --only "$part" --quick --compiled default --record \
      --commit "${2:-conv-session}"
  done
} >"$folder/conv.log" 2>&1
cat benchmarks/results/*"${2:-conv-session}".jsonl >"$folder/conv.jsonl"
tail -n 40 "$folder/conv.log"
