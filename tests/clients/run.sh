#!/usr/bin/env bash
# usage: run.sh "URL URL" TOKEN    Fetches the clients into this folder, then runs them.
set -euo pipefail
cd "$(dirname "$0")"
urls=$1 token=$2

[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
npm ci --silent --no-fund --no-audit

# shellcheck disable=SC2086 # the URLs are separate words
TOKEN=$token .venv/bin/python client.py $urls
# shellcheck disable=SC2086
TOKEN=$token node client.mjs $urls
