#!/bin/sh
# One run on a machine with a GPU, or with --cpu on any: proves the engine there, then measures it. Everything is in
# this folder; results go to $OUT, or to ./out. `./run.sh --help` says more.
exec "${PYTHON:-python3}" "$(dirname "$0")/tests/bench/gpu/gpu.py" "$@"
