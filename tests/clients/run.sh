#!/usr/bin/env bash
# usage: run.sh "URL URL" TOKEN [DATA]    Fetches the clients into this folder, then runs them. With the data folder of a
# `tillsync dev`, whose nodes are restarted, and with TILLSYNC=path/to/tillsync, whose node is full, that is tried, too.
set -euo pipefail
cd "$(dirname "$0")"
urls=$1 token=$2 data=${3:-}

venv() {
    [ -x "$1/bin/python" ] || python3 -m venv "$1"
    "$1/bin/pip" install --quiet --disable-pip-version-check -r "$2"
}
venv .venv requirements.txt
venv .venv-old requirements-old.txt
npm ci --prefer-offline --silent --no-fund --no-audit

# shellcheck disable=SC2086 # the URLs are separate words
TOKEN=$token .venv/bin/python client.py $urls
# shellcheck disable=SC2086
TOKEN=$token node client.mjs $urls
TOKEN=$token node console.mjs "${urls%% *}"

# As they are used: reconnecting by themselves.
url=${urls%% *}
TOKEN=$token node reconnect.mjs burst "$url"
for venv in .venv .venv-old; do TOKEN=$token "$venv/bin/python" reconnect.py burst "$url"; done
[ -z "$data" ] || ./restart.sh "$url" "$data" "$token"
[ -z "${TILLSYNC:-}" ] || ./full.sh "$TILLSYNC"
./proxy.sh "$urls" "$token"
