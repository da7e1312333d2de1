#!/usr/bin/env bash
# Installs the project into .venv (made when missing). Usage: tools/install.sh [EXTRA]
set -euo pipefail
case " $* " in *" --help "* | *" -h "*) sed -n '2,2s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
if [ ! -x .venv/bin/python ]; then
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $python is $("$python" --version 2>&1); Python 3.11 or newer is needed (set PYTHON=…)" >&2
    exit 1
  }
  "$python" -m venv .venv
fi
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${1:+[$1]}"
