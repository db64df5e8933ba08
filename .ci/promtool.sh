#!/usr/bin/env bash
# promtool.sh FILE: puts Prometheus' promtool there. Installs nothing: Debian's package is unpacked into a temporary folder.
set -euo pipefail
target=$(realpath -m "$1")
if tool=$(command -v promtool) && [[ $tool != "$target" ]]; then
    ln -sf "$tool" "$target"
    exit
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
download() (cd "$folder" && apt-get download -qq prometheus)
if command -v apt-get dpkg-deb >/dev/null &&
    { download || { [[ $(id -u) == 0 ]] && apt-get update -qq && download; }; } 2>"$folder/errors"; then
    dpkg-deb -x "$folder"/prometheus*.deb "$folder"
    install "$folder/usr/bin/promtool" "$target"
else
    echo "promtool is missing, so alerts and queries are not tried by Prometheus itself: apt-get install prometheus, and again" >&2
    sed 's/^/    /' "$folder/errors" >&2 2>/dev/null || true
fi
