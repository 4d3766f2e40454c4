#!/usr/bin/env bash
# usage: proxy.sh "URL URL …" TOKEN    The clients through nginx with deploy/nginx.conf, its nodes and port replaced. Wants
# what run.sh has fetched.
set -euo pipefail
cd "$(dirname "$0")"
urls=$1 TOKEN=$2
export TOKEN
if ! command -v nginx >/dev/null; then
    echo "no nginx here: nothing is tried through a proxy"
    exit 0
fi
work=$(mktemp -d)
port=$((10000 + RANDOM % 20000))
nodes=$(for url in $urls; do printf 'server %s max_fails=1 fail_timeout=2s;' "${url#http://}"; done)
{
    echo "worker_processes 1; pid $work/pid; error_log $work/error.log; events { worker_connections 1024; }"
    echo "http { access_log off; client_body_temp_path $work/body; proxy_temp_path $work/proxy;"
    echo "fastcgi_temp_path $work/f; uwsgi_temp_path $work/u; scgi_temp_path $work/s;"
    sed -e '/server 10\.0\.17\.[23]:5000/d' -e "s/server 10\.0\.17\.1:5000.*/$nodes/" \
        -e "s/listen 80;/listen 127.0.0.1:$port;/" ../../deploy/nginx.conf
    echo "}"
} >"$work/nginx.conf"
nginx -p "$work" -c "$work/nginx.conf" -g 'daemon off;' 2>"$work/log" &
nginx=$!
trap 'kill "$nginx" 2>/dev/null && wait "$nginx" || true; rm -rf "$work"' EXIT
url=http://127.0.0.1:$port
for _ in $(seq 100); do
    ! curl --silent --fail --max-time 1 --output /dev/null "$url/healthz" || break
    kill -0 "$nginx" || { cat "$work/log" >&2; exit 1; }
    sleep 0.1
done
node client.mjs "$url" "$url"
node reconnect.mjs burst "$url"
# A stream's first bytes come through at once, though nothing is written.
head=$(curl --silent --no-buffer --max-time 3 -H "Authorization: Bearer $TOKEN" -H "Accept: text/event-stream" \
    "$url/sync/changes?tables=nobody_writes_this" || true)
[ "${head:0:1}" = ":" ] || { echo "the stream is held back: '$head'" >&2; exit 1; }
echo "through nginx: ok"
