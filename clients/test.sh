#!/usr/bin/env bash
# usage: test.sh [URL TOKEN DATA]    Lints, builds and tests the client libraries, each as it is installed from its packed
# file. With a cluster (of `tillsync dev`: a node's URL, an admin's token, its data folder) also against that, whose nodes
# are killed; without one only what needs none.
set -euo pipefail
cd "$(dirname "$0")"
if [ $# -gt 0 ]; then
    export TILLSYNC_URL=$1 TILLSYNC_TOKEN=$2 TILLSYNC_DATA=$3
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

[ -x .venv/bin/python ] || python3 -m venv .venv
python=$PWD/.venv/bin/python
"$python" -m pip install --quiet --disable-pip-version-check -r python/requirements-test.txt

(
    cd python
    "$python" -m ruff check --quiet
    "$python" -m ruff format --quiet --check
    "$python" -m mypy --no-error-summary
    "$python" -m build --outdir "$work" >"$work/build.log" || { cat "$work/build.log" >&2; exit 1; }
    "$python" -m zipfile -l "$work"/tillsync-*.whl >"$work/files"
    for file in tillsync/py.typed licenses/LICENSE tillsync/core.py; do
        grep -q "$file" "$work/files" || { echo "the wheel has no $file" >&2; exit 1; }
    done
    ! grep -E "tests/|sqlite |till-data" "$work/files"
    "$python" -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps "$work"/tillsync-*.whl
    TILLSYNC_SOAK=${TILLSYNC_SOAK:-10} "$python" -m pytest -p no:cacheprovider
)
echo "the Python library: ok"

(
    cd typescript
    npm ci --prefer-offline --silent --no-fund --no-audit
    npx tsc
    # What a browser loads without socket.io-client; a bundler makes less of it.
    size=$(cd dist && cat actions.js browser.js change.js client.js core.js disk.js index.js limits.js ../node_modules/idb/build/index.js | gzip -9 | wc -c)
    [ "$size" -le 25000 ] || { echo "the browser's library has $size bytes gzipped, more than 25,000" >&2; exit 1; }
    npm pack --silent --pack-destination "$work" >/dev/null
    mkdir "$work/project"
    cd "$work/project"
    npm init -y >/dev/null
    npm install --silent --no-fund --no-audit "$work"/tillsync-client-*.tgz
    cd - >/dev/null
    INSTALLED=$work/project PYTHON=$python TILLSYNC_SOAK=${TILLSYNC_SOAK:-10} node --test --test-reporter=dot test/*.test.mjs
)
echo
echo "the TypeScript library: ok"

(
    cd rxdb
    npm ci --prefer-offline --silent --no-fund --no-audit
    npx tsc
    npm pack --silent --pack-destination "$work" >/dev/null
    tar tzf "$work"/tillsync-rxdb-*.tgz >"$work/files"
    for file in dist/index.js dist/index.d.ts README.md LICENSE; do
        grep -q "^package/$file$" "$work/files" || { echo "the package has no $file" >&2; exit 1; }
    done
    ! grep -vE "^package/(dist/[a-z]+\.(js|d\.ts)|README.md|LICENSE|package.json)$" "$work/files"
    mkdir "$work/rxdb"
    cd "$work/rxdb"
    npm init -y >/dev/null
    versions=$(cd - >/dev/null && node -p 'const { rxdb, rxjs } = require("./package.json").devDependencies; `rxdb@${rxdb} rxjs@${rxjs}`')
    # shellcheck disable=SC2086 # two words
    npm install --silent --no-fund --no-audit "$work"/tillsync-client-*.tgz "$work"/tillsync-rxdb-*.tgz $versions
    cd - >/dev/null
    awk '/^```javascript/ { inside = 1; next } /^```/ { inside = 0 } inside' README.md >"$work/rxdb/readme.mts"
    npx tsc --noEmit --strict --target es2022 --module nodenext --skipLibCheck "$work/rxdb/readme.mts"
    INSTALLED=$work/rxdb TILLSYNC_SOAK=${TILLSYNC_SOAK:-10} node --test --test-reporter=dot test/*.test.mjs
)
echo
echo "the RxDB plugin: ok"

# There is no Dart to run that library's tests: only that its tables are those of the docs.
"$python" dart/tool/generate.py --check
echo "the Dart library: its tables are right; nothing of it was run"

# program LANGUAGE NUMBER: docs/clients.md's NUMBERth program in that language
program() {
    awk -v fence="\`\`\`$1" -v number="$2" '
        $0 == fence { found++; inside = found == number; next }
        $0 == "```" { inside = 0 }
        inside' ../docs/clients.md
}
program dart 1 | diff - dart/example/main.dart

if [ -n "${TILLSYNC_URL:-}" ]; then
    program python 1 >"$work/till.py"
    program javascript 1 >"$work/rxdb/till.mjs"
    program javascript 2 >"$work/rxdb/shop.mjs"
    cd "$work" # the programs keep their data beside them
    for run in "$python till.py" "node rxdb/till.mjs" "node rxdb/shop.mjs"; do
        # shellcheck disable=SC2086 # two words
        sale=$($run "$TILLSYNC_URL" "$TILLSYNC_TOKEN" | grep -oE '^[0-9]+')
        answer=$("$python" -c 'import sys, urllib.request as r; print(r.urlopen(r.Request(sys.argv[1], headers={"authorization": "Bearer " + sys.argv[2]})).read().decode())' \
            "$TILLSYNC_URL/data/sales/$sale" "$TILLSYNC_TOKEN")
        grep -q "Café" <<<"$answer" || { echo "$run: the cluster has no sale $sale: $answer" >&2; exit 1; }
        rm -rf till-data
        echo "docs/clients.md, ${run##*[ /]}: ok"
    done
fi
