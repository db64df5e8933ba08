#!/bin/sh
# A base image from Debian's packages alone, for machines that reach no image registry.
#   deploy/images/debian_base.sh NAME [SUITE [ARCHITECTURE]]
# Needs root, debootstrap and buildah; for another architecture (arm64) qemu-user-static too. Does nothing when NAME is there.
set -eu
name=$1
suite=${2:-bookworm}
architecture=${3:-$(dpkg --print-architecture)}
buildah images --quiet "$name" >/dev/null 2>&1 && exit 0
container=$(buildah from --arch "$architecture" scratch)
trap 'buildah rm "$container" >/dev/null' EXIT
root=$(buildah mount "$container")
debootstrap --arch "$architecture" --variant=minbase --include=ca-certificates,python3,python3-venv "$suite" "$root" >/dev/null
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
# Without it, a pod whose manifest names a command does not find it.
buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
buildah commit --quiet "$container" "$name"
