#!/usr/bin/env bash
# usage: docs.sh URL TOKEN    Takes the Python and JavaScript programs out of docs/clients.md and runs them.
set -euo pipefail
cd "$(dirname "$0")"
url=$1 token=$2

# The programs stand below this folder, where Node.js finds its packages.
rm -rf examples && mkdir examples
program() {
    sed -n "/^\`\`\`$1\$/,/^\`\`\`\$/p" ../../docs/clients.md | sed '1d;$d' >"examples/$2"
    [ -s "examples/$2" ]
}
program python client.py
program javascript client.mjs

[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/pip install --quiet --disable-pip-version-check websockets==15.0.1
[ -d node_modules/socket.io-client ] || npm ci --silent --no-fund --no-audit

TOKEN=$token timeout 60 .venv/bin/python examples/client.py "$url"
echo "docs/clients.md, Python: ok"
TOKEN=$token timeout 60 node examples/client.mjs "$url"
echo "docs/clients.md, JavaScript: ok"
