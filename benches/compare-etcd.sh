#!/usr/bin/env bash
# Tillsync beside etcd: three durable nodes of each on the same disk of this machine, in turns, never both at once.
# Prints medians over the rounds and their ratios, and writes them as JSON. etcd comes from Debian.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

rounds=3 seconds=10 clients=1,16,64,256,1000 dir=$root/target/compare-etcd
usage="usage: benches/compare-etcd.sh [--rounds N] [--seconds S] [--clients N,…] [--dir DIR]"
while [ $# -gt 0 ]; do
    case $1 in
        --rounds) rounds=$2; shift 2 ;;
        --seconds) seconds=$2; shift 2 ;;
        --clients) clients=$2; shift 2 ;;
        --dir) dir=$2; shift 2 ;;
        *) echo "$usage" >&2; exit 2 ;;
    esac
done

if ! command -v etcd >/dev/null; then
    as_root=; [ "$(id -u)" = 0 ] || as_root=sudo
    # Only the program: the package would also start a node of its own.
    $as_root apt-get update -q
    $as_root apt-get download -q etcd-server 2>/dev/null || { echo "etcd-server is not to be had from apt" >&2; exit 1; }
    mkdir -p "$dir/etcd-package"
    dpkg-deb -x etcd-server_*.deb "$dir/etcd-package"
    rm -f etcd-server_*.deb
    PATH=$dir/etcd-package/usr/bin:$PATH
fi

export CARGO_TARGET_DIR=$root/target
cargo build --release --quiet
cargo build --release --quiet --locked --manifest-path benches/etcd-load/Cargo.toml
tillsync=$CARGO_TARGET_DIR/release/tillsync
etcd_load=$CARGO_TARGET_DIR/release/etcd-load

mkdir -p "$dir"
results=$(mktemp -d "$dir/run-XXXX")
pids=()
stop() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    pids=()
}
trap stop EXIT
load=(--seconds "$seconds" --size 256)

one_tillsync() {
    local data=$results/tillsync-data out=$results/tillsync-$1
    rm -rf "$data"
    "$tillsync" dev --no-restart --data "$data" --port 25000 >"$out.log" 2>&1 &
    pids=($!)
    for _ in $(seq 200); do grep -q "Tillsync runs" "$out.log" && break; sleep 0.1; done
    local where=(--data "$data" --url 127.0.0.1:25000,127.0.0.1:25001,127.0.0.1:25002)
    "$tillsync" bench write "${where[@]}" "${load[@]}" --clients "$clients" --subscribe none --json "$out-write.json"
    "$tillsync" bench read "${where[@]}" "${load[@]}" --clients "$clients" --json "$out-read.json"
    echo "(every writer hears every change:)"
    "$tillsync" bench write "${where[@]}" "${load[@]}" --clients 16,64 --subscribe all --json "$out-all.json"
    stop
    rm -rf "$data"
}

one_etcd() {
    local data=$results/etcd-data out=$results/etcd-$1 peers= urls=
    rm -rf "$data"
    mkdir -p "$data"
    for n in 1 2 3; do
        peers+=${peers:+,}n$n=http://127.0.0.1:2610$n
        urls+=${urls:+,}http://127.0.0.1:2600$n
    done
    pids=()
    for n in 1 2 3; do
        etcd --name n$n --data-dir "$data/$n" --initial-cluster "$peers" --initial-cluster-state new \
            --listen-peer-urls http://127.0.0.1:2610$n --initial-advertise-peer-urls http://127.0.0.1:2610$n \
            --listen-client-urls http://127.0.0.1:2600$n --advertise-client-urls http://127.0.0.1:2600$n \
            --quota-backend-bytes 8589934592 --logger zap --log-level error >"$out-node$n.log" 2>&1 &
        pids+=($!)
    done
    for _ in $(seq 200); do
        "$etcd_load" write --url "$urls" --clients 3 --seconds 1 --warmup 0 >/dev/null 2>&1 && break
        sleep 0.1
    done
    "$etcd_load" write --url "$urls" "${load[@]}" --clients "$clients" --json "$out-write.json"
    "$etcd_load" read --url "$urls" "${load[@]}" --clients "$clients" --json "$out-read.json"
    stop
    rm -rf "$data"
}

echo "$(nproc) cores, load $(cut -d' ' -f1-3 /proc/loadavg), $(etcd --version | head -1)"
for round in $(seq "$rounds"); do
    echo "== round $round of $rounds: tillsync"
    one_tillsync "$round"
    echo "== round $round of $rounds: etcd"
    one_etcd "$round"
done
echo
"$etcd_load" table --tillsync "$results"/tillsync-*.json --etcd "$results"/etcd-*.json --json "$results/table.json"
echo "results: $results"
