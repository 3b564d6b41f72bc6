#!/bin/bash
# Installs the Debian packages that are missing, and does nothing (in a fraction of a second) when none is.
#
#   scripts/install-packages.sh           install what is missing
#   scripts/install-packages.sh --list    print the names of all packages, install nothing
#
# The names come from packages.txt in this folder and in every other one that has such a file.
set -euo pipefail
export LC_ALL=C

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() { echo "install-packages: $*" >&2; exit 1; }

wanted() { sed -e 's/#.*//' -e 's/[[:space:]]//g' -e '/^$/d' "$root"/*/packages.txt | sort -u; }

installed() { dpkg-query -W -f '${db:Status-Abbrev} ${binary:Package}\n' 2>/dev/null | sed -n 's/^ii  *\([^:]*\).*/\1/p' | sort -u; }

# Images and the emulated machine are made of packages that apt downloads but does not install.
lists_are_there() { compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null; }

if [ "${1:-}" = --list ]; then
    wanted
    exit
fi

[ -r /etc/debian_version ] && command -v apt-get >/dev/null && command -v dpkg-query >/dev/null ||
    fail "this is not Debian: install these packages, or what they are called here, yourself: $(wanted | tr '\n' ' ')"

mapfile -t missing < <(comm -23 <(wanted) <(installed))
if [ ${#missing[@]} -eq 0 ] && lists_are_there; then
    exit
fi

as_root=()
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null && sudo -n true 2>/dev/null ||
        fail "root is needed to install packages; run as root: apt-get update && apt-get install --no-install-recommends ${missing[*]}"
    as_root=(sudo)
fi

echo "install-packages: apt-get update" >&2
"${as_root[@]}" apt-get -qq update || fail "apt-get update failed; is a Debian mirror reachable?"
if [ ${#missing[@]} -gt 0 ]; then
    echo "install-packages: installing ${missing[*]}" >&2
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends "${missing[@]}" >&2 ||
        fail "apt-get could not install: ${missing[*]}"
fi
