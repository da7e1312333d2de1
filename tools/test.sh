#!/usr/bin/env bash
# Installs with the [test] and [aot] extras, checks style, runs the tests. MSER_SHARED=DIR adds the tests on real
# recordings. Usage: tools/test.sh [pytest's options]
set -euo pipefail
case " $* " in *" --help "* | *" -h "*) sed -n '2,3s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tools/install.sh test,aot
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# One file stays on one worker: a compile is made once. Two workers, as CI has two cores.
exec .venv/bin/python -m pytest -n "${MSER_TEST_WORKERS:-2}" --dist loadfile "$@"
