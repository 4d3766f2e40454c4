#!/usr/bin/env bash
# What a growing change log costs: writes a second and p99 with so many changes stored, the restart of a node, and
# what its folder takes. Three nodes of this machine that the script starts itself.
set -euo pipefail
cd "$(dirname "$0")/.."
marks=10000,1000000,5000000 port=$((20000 + RANDOM % 20000))
while [ $# -gt 0 ]; do
    case $1 in
        --marks) marks=$2; shift 2 ;;
        *) echo "usage: benches/grow.sh [--marks N,…]" >&2; exit 2 ;;
    esac
done
cargo build --release --quiet
tillsync=${CARGO_TARGET_DIR:-$PWD/target}/release/tillsync
data=$(mktemp -d)
"$tillsync" dev --data "$data" --port "$port" --set keep_changes=100000000 --set keep_changes_mb=1048576 </dev/null >"$data/dev.log" 2>&1 &
dev=$!
trap 'kill "$dev" 2>/dev/null && wait "$dev" || true; rm -rf "$data"' EXIT
for _ in $(seq 600); do
    ! grep -q "Tillsync runs" "$data/dev.log" || break
    kill -0 "$dev" || { cat "$data/dev.log" >&2; exit 1; }
    sleep 0.1
done
TILLSYNC_TOKEN=$(cat "$data/admin.token")
TILLSYNC_URL=http://127.0.0.1:$port,http://127.0.0.1:$((port + 1)),http://127.0.0.1:$((port + 2))
export TILLSYNC_TOKEN TILLSYNC_URL
head_seq() {
    curl -sf -H "Authorization: Bearer $TILLSYNC_TOKEN" "http://127.0.0.1:$port/system/cluster" |
        sed 's/.*"head_seq":\([0-9]*\).*/\1/'
}
now() { date +%s%3N; }
# A kill of node 3, and the time from its new process to its first linearizable answer.
restart() {
    local old pid started
    old=$(cat "$data/node-3/pid")
    kill -9 "$old"
    until pid=$(cat "$data/node-3/pid" 2>/dev/null) && [ -n "$pid" ] && [ "$pid" != "$old" ]; do sleep 0.01; done
    started=$(now)
    until curl -sf -o /dev/null -H "Authorization: Bearer $TILLSYNC_TOKEN" \
        "http://127.0.0.1:$((port + 2))/sync/changes?limit=1"; do
        sleep 0.01
    done
    echo "restart of node 3 until it serves: $(($(now) - started)) ms"
}
for mark in ${marks//,/ }; do
    while [ "$(head_seq)" -lt "$mark" ]; do
        left=$((mark - $(head_seq)))
        "$tillsync" bench write --clients 256 --warmup 0 --seconds $((left / 40000 + 1)) >/dev/null
    done
    echo "== $(head_seq) changes, $(du -sm "$data/node-1" | cut -f1) MB in the folder of node 1"
    "$tillsync" bench write --clients 64 --seconds 5
    restart
done
