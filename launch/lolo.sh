#!/usr/bin/env bash
# Leave one language out on a folder of real recordings: for each language a run that never hears it, scored on it with
# four classes; then the table beside reference figures. A run that was cut off goes on, one that is done is scored.
# Usage: launch/lolo.sh SPEECH_DIR WORKDIR [LANGUAGES] [--config.section.key=value …]
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,4s/^# //p' "${BASH_SOURCE[0]}" >&2; exit 2; }
speech=$(realpath "$1") workdir=$(realpath -m "$2")
shift 2
languages=de,en,es,it,pl,zh
case "${1:-}" in "" | --*) ;; *) languages=$1 && shift ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export TFDS_DATA_DIR=${TFDS_DATA_DIR:-$PWD/data}
for language in ${languages//,/ }; do
  .venv/bin/python -m mser_jax.main --config="configs/stage1.py:real,lolo=$language" --workdir="$workdir/$language" \
    --config.data.corpora="speech_folder:$speech" "$@"
done
.venv/bin/python tools/lolo_table.py "$workdir"
