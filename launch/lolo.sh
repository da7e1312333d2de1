#!/usr/bin/env bash
# Leave one language out on a folder of real recordings: for each language a run that never hears it, scored on it with
# four classes; then the table beside reference figures. A run that was cut off goes on, one that is done is kept.
# Usage: launch/lolo.sh SPEECH_DIR WORKDIR [stage=1] [variant=real] [languages=de,en,es,it,pl,zh] [seeds=0] [init=RUNS]
#                       [--config.section.key=value …] [--jobs=N …: options of launch/sweep.py]
# A run lies in WORKDIR/LANGUAGE/seed_N. With stage=2 it starts from the stage 1 run RUNS/LANGUAGE/seed_N, if init is given.
set -euo pipefail
case " $* " in *" --help "* | *" -h "*) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;; esac
[ $# -ge 2 ] || { sed -n '2,7s/^# //p' "${BASH_SOURCE[0]}" >&2; exit 2; }
absolute() { case "$1" in *://*) echo "$1" ;; *) realpath -m -- "${1/#\~/$HOME}" ;; esac; }
speech=$(absolute "$1") workdir=$(absolute "$2")
shift 2
options=
while [ $# -gt 0 ]; do
  case "$1" in
    init=*) options+=";init=$(absolute "${1#*=}")" ;;
    stage=[12] | variant=* | languages=* | seeds=*) options+=";$1" ;;
    --*) break ;;
    *) echo "error: $1: expected stage=1|2, variant=, languages=, seeds=, init= or --config.…" >&2; exit 2 ;;
  esac
  shift
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export TFDS_DATA_DIR=${TFDS_DATA_DIR:-$PWD/data}
# What one run compiled the next ones need not.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.jax_cache}
.venv/bin/python launch/sweep.py "configs/sweeps/lolo.py:corpora=speech_folder:$speech$options" --workdir="$workdir" "$@"
# Runs that are only printed or submitted have no figures yet.
case " $* " in *" --launcher=local "* | *" --launcher local "*) ;; *" --launcher"*) exit ;; esac
.venv/bin/python tools/lolo_table.py "$workdir"
