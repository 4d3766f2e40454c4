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
    npm ci --silent --no-fund --no-audit
    npx tsc
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
    npm ci --silent --no-fund --no-audit
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
    INSTALLED=$work/rxdb TILLSYNC_SOAK=${TILLSYNC_SOAK:-10} node --test --test-reporter=dot test/*.test.mjs
)
echo
echo "the RxDB plugin: ok"
