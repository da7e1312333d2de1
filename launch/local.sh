#!/usr/bin/env bash
# From nothing to scores on this machine's CPU: installs into .venv, makes M5SER-mini, trains stage 1 on six languages,
# stage 2 from it, and scores both on two languages that they never heard.
# Usage: launch/local.sh [WORKDIR] [--config.section.key=value …]   (options are those that both stages have)
set -euo pipefail
case " $* " in *" --help "* | *" -h "*) sed -n '2,4s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;; esac
absolute() { case "$1" in *://*) echo "$1" ;; *) realpath -m -- "${1/#\~/$HOME}" ;; esac; }
case "${1:-}" in "" | --*) workdir=$(dirname "${BASH_SOURCE[0]}")/../runs/local ;; *) workdir=$1 && shift ;; esac
workdir=$(absolute "$workdir")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tools/install.sh
export TFDS_DATA_DIR=${TFDS_DATA_DIR:-$PWD/data}
run() { .venv/bin/python -m mser_jax.main "$@"; }
run --config=configs/stage1.py --workdir="$workdir/stage1" "$@"
run --config=configs/stage2.py --workdir="$workdir/stage2" --config.init_from="$workdir/stage1" "$@"
for stage in stage1 stage2; do
  run --config=configs/evaluate.py --workdir="$workdir/evaluation/$stage" --config.checkpoint="$workdir/$stage"
done
.venv/bin/python tools/local_table.py "$workdir"
