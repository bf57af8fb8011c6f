#!/bin/sh
# Embedding tables on a machine with a GPU: gpu_embedding.sh FOLDER COMMIT [quick]
# Runs their tests and then their benchmark. Writes FOLDER/embedding.log and, with the rows of the
# benchmark, FOLDER/embedding.jsonl. COMMIT labels the rows, where the tree has no repository.
set -u
folder=${1:?the folder for the results} commit=${2:?the label of the commit} quick=${3:+--quick}
mkdir -p "$folder" && folder=$(cd "$folder" && pwd) || exit
cd "$(dirname "$0")/.." || exit
python=$(scripts/interpreter.sh)
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
log=$folder/embedding.log
"$python" -m pytest -q -p no:cacheprovider -m gpu tests/gpu/test_embedding_cuda.py --durations=5 >"$log" 2>&1
status=$?
touch "$folder/begin"
# shellcheck disable=SC2086 # no argument where it is empty
timeout 240 "$python" -m benchmarks.embedding --record --commit "$commit" $quick >>"$log" 2>&1 || status=$?
find benchmarks/results -name '*.jsonl' -newer "$folder/begin" -exec cat {} + >"$folder/embedding.jsonl"
rm "$folder/begin"
tail -n 100 "$log"
exit "$status"
