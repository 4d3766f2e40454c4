#!/usr/bin/env bash
# usage: docs.sh URL TOKEN    Takes the classes and their programs out of docs/clients.md, runs them, and then what
# they must survive (docs/check.py, docs/check.mjs).
set -euo pipefail
cd "$(dirname "$0")"
url=$1 token=$2

# The programs stand below this folder, where Node.js finds its packages.
rm -rf examples && mkdir examples
# program LANGUAGE NUMBER FILE: the page's NUMBERth program in that language without a library
program() {
    awk -v fence="\`\`\`$1" -v number="$2" '
        /^## The rules/ { found = 0; rules = 1 }
        rules && $0 == fence { found++; inside = found == number; next }
        $0 == "```" { inside = 0 }
        inside' ../../docs/clients.md >"examples/$3"
    [ -s "examples/$3" ]
}
program python 1 client.py
program python 2 try.py
program javascript 1 client.mjs
program javascript 2 try.mjs
cp docs/check.py docs/check.mjs examples/

[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/pip install --quiet --disable-pip-version-check websockets==15.0.1
[ -d node_modules/socket.io-client ] || npm ci --silent --no-fund --no-audit

export TOKEN=$token
python=$PWD/.venv/bin/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost \
    -addext subjectAltName=DNS:localhost -keyout "$work/key.pem" -out "$work/cert.pem" 2>"$work/openssl.log" ||
    { cat "$work/openssl.log" >&2; exit 1; }

run() {
    local name=$1
    shift
    (cd "$work" && timeout 120 "$@" 2>"$work/said") || { tail -20 "$work/said" | cut -c1-500 >&2; exit 1; }
    echo "docs/clients.md, $name: ok"
}
examples=$PWD/examples
run "Python" "$python" "$examples/try.py" "$url"
run "JavaScript" node "$examples/try.mjs" "$url"
run "Python, what it must survive" "$python" "$examples/check.py" "$url" "$work/py" "$work/cert.pem" "$work/key.pem"
run "JavaScript, what it must survive" node "$examples/check.mjs" "$python" "$url" "$work/js" "$work/cert.pem" "$work/key.pem"
