#!/usr/bin/env bash
# usage: run.sh TILLSYNC [--minutes M] [--seed S]    Fetches the libraries into this folder, and soaks a cluster of its own.
set -euo pipefail
tillsync=$(realpath "$1")
shift
cd "$(dirname "$0")"

venv() {
    local folder=$1
    shift
    [ -x "$folder/bin/python" ] || python3 -m venv "$folder"
    "$folder/bin/pip" install --quiet --disable-pip-version-check "$@"
}
venv .venv4 python-socketio==4.6.1 python-engineio==3.14.2 aiohttp==3.14.5 websockets==15.0.1
venv .venv5 python-socketio==5.18.1 websockets==15.0.1 aiohttp==3.14.5
[ -d node_modules/sio4 ] || npm ci --silent --no-fund --no-audit

python3 test_checker.py
exec python3 soak.py "$tillsync" "$(mktemp -d)/soak" "$@"
