#!/usr/bin/env bash
# usage: restart.sh URL DATA TOKEN    Restarts every node of a `tillsync dev` in turn, under the clients of all versions
# on its first node: all must come back by themselves. Wants what run.sh has fetched.
set -euo pipefail
cd "$(dirname "$0")"
url=$1 data=$2 TOKEN=$3
export TOKEN
flags=$(mktemp -d)
clients=()
trap 'kill "${clients[@]}" 2>/dev/null || true; rm -rf "$flags"' EXIT

node reconnect.mjs restart "$url" "$flags" & clients+=($!)
.venv/bin/python reconnect.py restart "$url" "$flags" & clients+=($!)
.venv-old/bin/python reconnect.py restart "$url" "$flags" & clients+=($!)
wait_for() {
    for _ in $(seq 600); do
        ! "$@" || return 0
        kill -0 "${clients[@]}" || return 1
        sleep 0.1
    done
    echo "never: $*" >&2
    return 1
}
for name in js py5 py4; do wait_for test -e "$flags/$name.ready"; done

gone() { ! kill -0 "$1" 2>/dev/null; }
renewed() { [ "$(cat "$data/node-$1/pid" 2>/dev/null)" != "$2" ]; }
serves() { curl --silent --fail --max-time 1 --output /dev/null "http://127.0.0.1:$1/readyz"; }
port=${url##*:}
for node in 1 2 3; do
    pid=$(cat "$data/node-$node/pid")
    kill -TERM "$pid"
    wait_for gone "$pid"
    wait_for renewed "$node" "$pid"
    wait_for serves $((port + node - 1))
done
touch "$flags/go"
for client in "${clients[@]}"; do wait "$client"; done
clients=()
