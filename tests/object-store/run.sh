#!/usr/bin/env bash
# usage: run.sh TILLSYNC    Backups in a bucket of a server that speaks S3 and checks signatures. Installs that server beside
# itself; it listens on this machine only, and is ended.
set -euo pipefail
cd "$(dirname "$0")"
python3 -m venv .venv
.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
exec .venv/bin/python check.py "$1"
