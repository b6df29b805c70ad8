#!/bin/sh
# Debian's docker-registry, unpacked where the tests look for it; nothing is installed.
#
#   tests/models/docker_registry.sh .models/docker-registry
set -eu
mkdir -p "$1"
place=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download --quiet docker-registry
dpkg -x docker-registry_*.deb "$place"
