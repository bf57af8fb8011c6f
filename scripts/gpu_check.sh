#!/bin/sh
# Checks on a machine with a GPU: gpu_check.sh [tests] [memcheck] [racecheck], all by default.
# Every one runs, whatever the others say. compute-sanitizer comes with the CUDA toolkit; it watches
# a short stress test over eight streams in a process of its own.
set -u
cd "$(dirname "$0")/.." || exit
python=$(scripts/interpreter.sh)
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH

sanitized() {
  # With host backtraces it keeps the Python frames of launches, and all tensors in them, alive.
  VRAMKIT_STRESS_STEPS=${VRAMKIT_STRESS_STEPS:-1000} compute-sanitizer --tool "$1" \
    --show-backtrace device --error-exitcode 3 "$python" -m pytest -q tests/gpu/test_stress.py -k 4MiB
}

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
  echo "no GPU: PyTorch sees none, and every check would skip" && exit 1
}
[ $# -gt 0 ] || set -- tests memcheck racecheck
failed=
for name in "$@"; do
  echo "=== $name"
  case $name in
    tests) "$python" -m pytest -q -m gpu tests ;;
    memcheck | racecheck) sanitized "$name" ;;
    *) echo "there is no check $name" && false ;;
  esac || failed="$failed $name"
done
[ -z "$failed" ] || { echo "failed:$failed" && exit 1; }
