#!/bin/sh
# setup_env.sh PYTHON: makes PYTHON able to build vramkit. A PYTHON inside .venv is made first, with
# torch $TORCH (2.13.0 when unset).
# setup_env.sh PYTHON EXTRA: installs the checkout, editable, with the needs of an extra.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=$1
extra=${2:-}

die() {
  echo "error: $*" >&2
  exit 1
}

find_base_python() {
  for name in python3.12 python3.11 python3 python; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  die "no Python 3.11 or later in PATH; install python3.12 (Debian: apt-get install python3 python3-venv)"
}

# A distribution's Python refuses pip; a .venv above it uses its torch all the same.
find_managed_python() {
  for name in python python3; do
    status=0
    "$name" "$root/scripts/torch_version.py" >/dev/null 2>&1 || status=$?
    if [ "$status" -eq 2 ]; then
      echo "$name"
      return
    fi
  done
}

if [ -n "$extra" ]; then
  cd "$root"
  "$python" -m pip install --quiet --no-build-isolation --editable ".[$extra]" >&2 ||
    die "pip could not install vramkit[$extra] into $python (see above)"
  exit
fi

compiler=${CXX:-g++}
command -v "$compiler" >/dev/null || command -v c++ >/dev/null || command -v clang++ >/dev/null ||
  die "no C++ compiler ($compiler) in PATH; install one (Debian: apt-get install g++) or set CXX"

if [ "$python" = "$root/.venv/bin/python" ] && ! "$python" -m pip --version >/dev/null 2>&1; then
  base=$(find_managed_python)
  options=${base:+--system-site-packages}
  [ -n "$base" ] || base=$(find_base_python)
  echo "making .venv with $($base --version)" >&2
  "$base" -m venv --clear $options "$root/.venv" >&2 ||
    die "$base cannot make a virtual environment (see above; Debian: apt-get install python3-venv)"
fi
"$python" -m pip --version >/dev/null 2>&1 ||
  die "$python has no pip; run: $python -m ensurepip, or activate another environment"

found=$("$python" "$root/scripts/torch_version.py" 2>/dev/null) || found=
case ".$found." in
  ..) install=${TORCH:-2.13.0} ;;
  ."${TORCH:-$found}"[.+]*) install= ;;
  *) install=$TORCH ;;
esac
if [ -n "$install" ]; then
  echo "installing torch $install into $python (this can take minutes)" >&2
  "$python" -m pip install --quiet "torch==$install" numpy >&2 ||
    die "pip could not install torch==$install into $python (see above)"
fi
"$python" -m pip install --quiet "setuptools>=77" >&2 ||
  die "pip could not install setuptools into $python (see above)"
