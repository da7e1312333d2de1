#!/usr/bin/env bash
# From nothing to a score on this machine's CPU: installs into .venv, makes M5SER-mini, trains stage 1 on six
# languages and scores two that it never heard. Usage: launch/local.sh [WORKDIR] [--config.section.key=value …]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

workdir=$PWD/runs/local
case "${1:-}" in "" | --*) ;; *) workdir=$(realpath -m "$1") && shift ;; esac

bash tools/install.sh
export TFDS_DATA_DIR=${TFDS_DATA_DIR:-$PWD/data}
.venv/bin/python -m mser_jax.main --config=configs/stage1.py --workdir="$workdir/stage1" "$@"
.venv/bin/python -m mser_jax.main --config=configs/evaluate.py --workdir="$workdir/evaluation" \
  --config.checkpoint="$workdir/stage1"
