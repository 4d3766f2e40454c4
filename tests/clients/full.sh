#!/usr/bin/env bash
# usage: full.sh TILLSYNC    Clients of all versions come to a node that has room for one session. Wants what run.sh has
# fetched.
set -euo pipefail
cd "$(dirname "$0")"
tillsync=$1
work=$(mktemp -d)
port=$((10000 + RANDOM % 20000))
"$tillsync" token key "$work/key" >/dev/null
TOKEN=$("$tillsync" token issue --key "$work/key" --class admin --sub admin)
export TOKEN
"$tillsync" serve --set node_id=1 --set data_dir="$work/data" --set key_file="$work/key" --set sessions=1 \
    --set gateway_listen="127.0.0.1:$port" --set raft_listen="127.0.0.1:$((port + 1))" \
    --set members="1=127.0.0.1:$((port + 1))/127.0.0.1:$port" </dev/null >"$work/log" 2>&1 &
node=$!
trap 'kill "$node" 2>/dev/null && wait "$node" || true; rm -rf "$work"' EXIT
for _ in $(seq 600); do
    ! curl --silent --fail --max-time 1 --output /dev/null "http://127.0.0.1:$port/readyz" || break
    kill -0 "$node" || { cat "$work/log" >&2; exit 1; }
    sleep 0.1
done
node reconnect.mjs full "http://127.0.0.1:$port"
