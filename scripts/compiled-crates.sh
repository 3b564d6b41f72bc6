#!/bin/bash
# Keeps what cargo compiled of other people's crates in the user's cache, so that a second clone compiles our own only:
# `scripts/compiled-crates.sh restore|save`, before and after a build.
#
# The key is what decides those results: the lock file, the compiler, cargo's settings and the profiles. cargo itself still
# judges each result by its fingerprint, so a wrong one costs time and no correctness. Our own crates are left out: their
# fingerprints hold the path of the clone. The folder is filled beside its place and renamed, so a half one is never found.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

verb=${1:?usage: scripts/compiled-crates.sh restore|save}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kata-rs/crates
# How many results are kept; older ones are removed when a new one is saved.
kept=1

key=$({ cat Cargo.lock .cargo/config.toml; sed -n '/^\[profile/,$p' Cargo.toml; rustc --version --verbose; } | sha256sum | cut -c1-16)
saved=$cache/$key

# Below target/: the profiles of the programs (with our triple) and of what runs during the build (without).
folders() {
    (cd "$1" && for folder in {,x86_64-unknown-linux-gnu/}{debug,release,guest}; do [ ! -d "$folder" ] || echo "$folder"; done)
}

# Our packages and targets as cargo names their files: with - and with _. (With --no-deps cargo lists only ours.)
ours() {
    cargo metadata --no-deps --offline --format-version 1 |
        grep -oE '"name":"[^"]+","(version":"[^"]+","id"|src_path)"' | cut -d'"' -f4 | sed 'p;s/-/_/g' | sort -u
}

case $verb in
restore)
    [ -d "$saved" ] || exit 0
    for folder in $(folders "$saved"); do
        # Where something was built already, that is newer.
        [ ! -e "target/$folder/.fingerprint" ] || continue
        mkdir -p "target/$folder"
        cp -a --reflink=auto "$saved/$folder/deps" "$saved/$folder/build" "target/$folder/"
        # Last and at once: without its fingerprint cargo believes no result, so a copy that was interrupted is only made again.
        rm -rf "target/$folder/.fingerprint.new"
        cp -a --reflink=auto "$saved/$folder/.fingerprint" "target/$folder/.fingerprint.new"
        mv "target/$folder/.fingerprint.new" "target/$folder/.fingerprint"
    done
    touch "$saved"
    ;;
save)
    [ ! -d "$saved" ] || exit 0
    mkdir -p "$cache"
    new=$(mktemp -d "$cache/.new.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    # A result is NAME-HASH, libNAME-HASH.*, or NAME-HASH.d; a build script's is one of its package's.
    names=$(ours | paste -sd'|')
    for folder in $(folders target); do
        for part in .fingerprint build deps; do
            mkdir -p "$new/$folder/$part"
            [ -d "target/$folder/$part" ] || continue
            (cd "target/$folder/$part" && find . -maxdepth 1 -mindepth 1 -printf '%P\0') |
                grep -zvE "^(lib)?($names)-[0-9a-f]{16}" |
                (cd "target/$folder/$part" && xargs -0 -r cp -a --reflink=auto -t "$new/$folder/$part")
        done
    done
    mv -T "$new" "$saved" 2>/dev/null || exit 0
    find "$cache" -mindepth 1 -maxdepth 1 -type d -printf '%T@ %p\n' | sort -rn | tail -n +$((kept + 1)) | cut -d' ' -f2- | xargs -r rm -rf
    ;;
*)
    echo "usage: scripts/compiled-crates.sh restore|save" >&2
    exit 2
    ;;
esac
