#!/bin/bash
# Builds the upstream file server, virtiofsd, from the crates registry: `scripts/virtiofsd.sh OUT`.
#
# The version is pinned and built with its own lock file. The result is one static, stripped binary, because it
# runs in an empty root directory of its own. It is kept in the user's cache under a key of everything that decides
# its bytes (version, compiler, this script, the two C libraries), so a second call only copies.
#
# libcap-ng and libseccomp are LGPL-2.1: they are linked from Debian's own static archives, unmodified, so anyone
# may relink against another version by rerunning this script with LIBCAPNG_LIB_PATH and LIBSECCOMP_LIB_PATH set.
set -euo pipefail

version=1.14.0
target=x86_64-unknown-linux-gnu
system_libraries=/usr/lib/x86_64-linux-gnu
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kata-rs

out=${1:?usage: scripts/virtiofsd.sh OUT}

fail() { echo "virtiofsd: $*" >&2; exit 1; }

# Finds LIB.a: among the installed files, else in the package, downloaded and unpacked beside the cache.
static_library_dir() {
    local package=$1 archive=$2 unpacked=$cache/static-libs/$1
    if [ -f "$system_libraries/$archive" ]; then
        echo "$system_libraries"
        return
    fi
    if [ ! -f "$unpacked$system_libraries/$archive" ]; then
        mkdir -p "$unpacked"
        (cd "$unpacked" && apt-get -qq download "$package" >&2 && dpkg-deb -x "$package"_*.deb . && rm -f "$package"_*.deb) ||
            fail "$archive is missing and $package could not be fetched; run: scripts/install-packages.sh"
    fi
    echo "$unpacked$system_libraries"
}

LIBCAPNG_LIB_PATH=${LIBCAPNG_LIB_PATH:-$(static_library_dir libcap-ng-dev libcap-ng.a)}
LIBSECCOMP_LIB_PATH=${LIBSECCOMP_LIB_PATH:-$(static_library_dir libseccomp-dev libseccomp.a)}
export LIBCAPNG_LIB_PATH LIBSECCOMP_LIB_PATH LIBCAPNG_LINK_TYPE=static LIBSECCOMP_LINK_TYPE=static

key=$(
    {
        echo "$version"
        rustc --version --verbose
        cat "$0" "$LIBCAPNG_LIB_PATH/libcap-ng.a" "$LIBSECCOMP_LIB_PATH/libseccomp.a"
    } | sha256sum | cut -c1-16
)
built=$cache/virtiofsd/$version-$key/virtiofsd

if [ ! -x "$built" ]; then
    echo "virtiofsd: building $version (about two minutes, once)" >&2
    started=$SECONDS
    work=$(mktemp -d "${TMPDIR:-/tmp}/kata-rs-virtiofsd.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    # Thin LTO instead of the crate's fat one: a third of the time for the same size. Optimising for size saves a
    # tenth of the file and nothing of the memory (measured), so it stays at speed. The profile is told by
    # environment, since a crate installed from the registry has no file of ours to say it in.
    env -u RUSTFLAGS \
        CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static" \
        CARGO_PROFILE_RELEASE_LTO=thin \
        CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1 \
        CARGO_PROFILE_RELEASE_STRIP=symbols \
        CARGO_PROFILE_RELEASE_PANIC=abort \
        CARGO_TARGET_DIR="$work/target" \
        cargo install virtiofsd --version "=$version" --locked --no-track --target "$target" --root "$work/root" >&2 ||
        fail "the build failed; the lines above say why. Is the crates registry reachable?"
    file=$work/root/bin/virtiofsd
    if readelf --program-headers "$file" | grep -q INTERP; then
        fail "$file asks for a dynamic loader; it has to be static"
    fi
    mkdir -p "$(dirname "$built")"
    # Renamed into place, so that a build cut short never looks finished.
    cp "$file" "$built.$$"
    mv "$built.$$" "$built"
    echo "virtiofsd: built in $((SECONDS - started)) s, $(stat -c %s "$built") bytes" >&2
fi

mkdir -p "$(dirname "$out")"
if ! cmp -s "$built" "$out"; then
    install -m 0755 "$built" "$out.$$"
    mv "$out.$$" "$out"
fi
