#!/usr/bin/env bash
# Leave one language out on a folder of real recordings: for each language a run that never hears it, scored on it with
# four classes; then the table beside reference figures. A run that was cut off goes on, one that is done is scored.
# Usage: launch/lolo.sh SPEECH_DIR WORKDIR [variant=real] [languages=de,en,es,it,pl,zh] [seeds=0]
#                       [--config.section.key=value …]
# A run lies in WORKDIR/LANGUAGE/seed_N.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,6s/^# //p' "${BASH_SOURCE[0]}" >&2; exit 2; }
speech=$(realpath "$1") workdir=$(realpath -m "$2")
shift 2
variant=real languages=de,en,es,it,pl,zh seeds=0
while [ $# -gt 0 ]; do
  case "$1" in
    variant=*) variant=${1#*=} ;;
    languages=*) languages=${1#*=} ;;
    seeds=*) seeds=${1#*=} ;;
    --*) break ;;
    *) echo "error: $1: expected variant=, languages=, seeds= or --config.…" >&2; exit 2 ;;
  esac
  shift
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export TFDS_DATA_DIR=${TFDS_DATA_DIR:-$PWD/data}
# What one run compiled the next ones need not.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.jax_cache}
for seed in ${seeds//,/ }; do
  for language in ${languages//,/ }; do
    .venv/bin/python -m mser_jax.main --config="configs/stage1.py:$variant,lolo=$language" \
      --workdir="$workdir/$language/seed_$seed" --config.seed="$seed" \
      --config.data.corpora="speech_folder:$speech" "$@"
  done
done
.venv/bin/python tools/lolo_table.py "$workdir"
