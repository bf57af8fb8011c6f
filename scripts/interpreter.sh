#!/bin/sh
# Prints the Python to use: the active one when it has a fitting torch, else .venv's (made by
# scripts/setup_env.sh). TORCH, when set, must be the active torch's version.
root=$(cd "$(dirname "$0")/.." && pwd)

for name in python python3; do
  found=$("$name" "$root/scripts/torch_version.py" 2>/dev/null) || continue
  case ".$found." in
    ."${TORCH:-$found}"[.+]*) "$name" -c 'import sys; print(sys.executable)' && exit ;;
  esac
done
echo "$root/.venv/bin/python"
