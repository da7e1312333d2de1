#!/usr/bin/env bash
# One run on Cloud TPU VMs: asks for a slice (a queued resource), installs this checkout on every host, starts the run on
# all of them, and starts over when the slice is preempted, until the run is done. The same line goes on after a stop.
# Usage: launch/tpu_vm.sh NAME TYPE ZONE [option …] -- --config=… --workdir=gs://… [--config.section.key=value …]
#        launch/tpu_vm.sh pod1 v5litepod-64 us-west4-a --spot -- --config=configs/stage1.py --workdir=gs://BUCKET/run
# Options: --spot, --version=v2-alpha-tpuv5-lite (of the TPU software), --keep (do not give the slice back at the end);
# others go to `gcloud compute tpus queued-resources create`. MSER_*, HF_* and TFDS_* variables are set on the hosts too.
# Exit code: the run's; 75 when this script is told to stop, after the run has saved.
set -euo pipefail
case " $* " in *" --help "* | *" -h "*) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;; esac
usage() { sed -n '2,9s/^# //p' "${BASH_SOURCE[0]}" >&2; exit 2; }
[ $# -ge 5 ] || usage
name=$1 type=$2 zone=$3 version=tpu-ubuntu2204-base keep='' create=()
shift 3
while [ "${1:---}" != -- ]; do
  case "$1" in
    --version=*) version=${1#*=} ;;
    --keep) keep=1 ;;
    *) create+=("$1") ;;
  esac
  shift
done
[ $# -ge 2 ] || usage
shift
case " $*" in *" --workdir=gs://"*) ;; *) echo "error: --workdir=gs://… is missing: hosts come and go" >&2; exit 2 ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
poll=${MSER_POLL_SECONDS:-30}

tpus() { gcloud compute tpus "$@" --zone="$zone" --quiet; }
state() { tpus queued-resources describe "$name" --format='value(state.state)' 2>/dev/null || echo NONE; }
everywhere() { tpus tpu-vm ssh "$name" --worker=all --command="$1"; }
give_back() { tpus queued-resources delete "$name" --force >&2 || true; }
say() { echo "tpu_vm: $*" >&2; }

acquire() { # until the slice is there
  local now before=''
  while :; do
    now=$(state)
    [ "$now" = "$before" ] || say "$name: $now"
    before=$now
    case "$now" in
      ACTIVE) return ;;
      NONE)
        say "asking for $type in $zone"
        tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
          --runtime-version="$version" ${create[@]+"${create[@]}"} >&2 ;;
      SUSPENDED | FAILED) give_back ;;
    esac
    sleep "$poll"
  done
}

install() {
  local archive
  archive=$(mktemp -d)/mser_jax.tar.gz
  git ls-files -z | tar --null --files-from=- -czf "$archive"
  tpus tpu-vm scp "$archive" "$name:/tmp/mser_jax.tar.gz" --worker=all >&2
  # A run that a broken connection left behind holds the chips.
  everywhere "pkill -TERM -f '[m]ser_jax.main' && while pgrep -f '[m]ser_jax.main' > /dev/null; do sleep 1; done || true"
  everywhere 'mkdir -p ~/mser_jax && cd ~/mser_jax && tar -xzf /tmp/mser_jax.tar.gz && bash tools/install.sh tpu' >&2
}

stopped=''
stop() { # the runs save and exit with 75, and so does this script
  stopped=1
  say "stopping the run; it saves first"
  everywhere "pkill -TERM -f '[m]ser_jax.main' || true" >&2 || true
}
trap stop TERM INT

environment=$(env | grep -E '^(MSER|HF|TFDS)_' | grep -v '^MSER_POLL' | while IFS='=' read -r key value; do
  printf '%s=%q ' "$key" "$value"
done || true)
# gcloud does not hand on the exit code of a host: the host says it.
line="cd ~/mser_jax && code=0; $environment.venv/bin/python -m mser_jax.main$(printf ' %q' "$@") || code=\$?; echo mser_jax exit \$code; exit \$code"
output=$(mktemp)
while :; do
  acquire
  code=255
  if install; then
    say "the run starts"
    everywhere "$line" 2>&1 | tee "$output" &
    while ! wait %%; do [ -n "$(jobs -r)" ] || break; done # a signal ends `wait`, not the run
    code=$(sed -n 's/^.*mser_jax exit \([0-9]*\)\r*$/\1/p' "$output" | sort -n | tail -1)
  fi
  [ -z "$stopped" ] || exit 75
  case "${code:=255}" in
    0) say "done" ;;
    75) say "preempted; the run was saved and goes on" && continue ;;
    255) say "the hosts are gone or out of reach" ;;
  esac
  # A host that vanished said nothing, or its neighbours ended for want of it: the state of the slice tells.
  if [ "$code" != 0 ] && { [ "$code" = 255 ] || [ "$(state)" != ACTIVE ]; }; then
    sleep "$poll"
    continue
  fi
  [ -n "$keep" ] || give_back
  exit "$code"
done
