#!/usr/bin/env bash
# Builds one flavour of the guest kernel from Debian's linux-source package.
#
#   build.sh hw|pvm OUT      OUT receives the ELF vmlinux; OUT.release, OUT.config and OUT.map lie beside it
#   build.sh --key hw|pvm    prints the content key of the flavour, builds nothing (for caches of a CI)
#
# The result is kept under ${XDG_CACHE_HOME:-$HOME/.cache}/kata-rs/kernel/KEY/, where KEY covers everything
# that decides the bytes of the result: the source package, the fragments, the patches, the compiler and
# the linker, and this script. A second run copies from there and builds nothing.
#
# KATA_RS_LINUX_SOURCE names another source archive (a linux-source-*.tar.xz) than the installed package's.
set -euo pipefail
shopt -s inherit_errexit
export LC_ALL=C

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here
readonly package=linux-source-6.12
readonly -a common_fragments=(base containers storage net virtio time)

die() {
    printf 'guest-kernel: %s\n' "$*" >&2
    exit 1
}

note() {
    printf 'guest-kernel: %s\n' "$*" >&2
}

usage() {
    die "usage: build.sh hw|pvm OUT, or build.sh --key hw|pvm"
}

# The source archive: what apt has installed, unless the caller names another.
source_archive() {
    local archive=${KATA_RS_LINUX_SOURCE:-/usr/src/$package.tar.xz}
    [[ -r $archive ]] || die "no kernel source at $archive: install the package $package" \
        "(all packages the build needs: $(tr '\n' ' ' <"$here/packages.txt"))"
    printf '%s\n' "$archive"
}

# The version of the source, as Debian counts it; of a named archive, its checksum's beginning.
source_version() {
    if [[ -n ${KATA_RS_LINUX_SOURCE:-} ]]; then
        printf 'archive-%s\n' "$(sha256sum "$1" | cut -c1-12)"
    else
        dpkg-query -W -f '${Version}\n' "$package" 2>/dev/null || die "$package is not installed as a package"
    fi
}

need_tools() {
    local tool missing=()
    for tool in gcc make ld flex bison bc xz patch; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    [[ -e /usr/include/libelf.h || -e /usr/include/gelf.h ]] || missing+=(libelf-dev)
    ((${#missing[@]} == 0)) || die "not installed: ${missing[*]}; the packages the build needs are in $here/packages.txt"
}

fragment_files() {
    local name
    for name in "${common_fragments[@]}" "$1"; do
        printf '%s\n' "$here/config/$name.config"
    done
}

# The patches of a flavour, in the order of their names; `hw` has none.
patch_files() {
    local file
    for file in "$here/patches/$1"-*.patch; do
        if [[ -e $file ]]; then printf '%s\n' "$file"; fi
    done
}

# Checksum of the archive. It is 140 MB: remembered by size, time and version so that a run that builds
# nothing does not read it.
archive_sum() {
    local archive=$1 memo stamp
    stamp=$(stat -c '%n %s %Y' "$archive")
    memo=$cache/source.sum
    if [[ -r $memo && $(head -n1 "$memo") == "$stamp" ]]; then
        tail -n1 "$memo"
        return
    fi
    mkdir -p "$cache"
    { printf '%s\n' "$stamp"; sha256sum "$archive" | cut -d' ' -f1; } >"$memo.$$"
    mv "$memo.$$" "$memo"
    tail -n1 "$memo"
}

content_key() {
    local flavour=$1 archive=$2 files version sum
    version=$(source_version "$archive")
    sum=$(archive_sum "$archive")
    mapfile -t files < <(fragment_files "$flavour"; patch_files "$flavour"; printf '%s\n' "$here/build.sh")
    {
        printf '%s\n' "$flavour" "$version" "$sum"
        gcc --version | head -n1
        ld --version | head -n1
        cat "${files[@]}"
    } | sha256sum | cut -c1-32
}

unpack() {
    local archive=$1 tree=$2
    note "unpacking $archive"
    mkdir -p "$tree"
    # Not the sources of drivers that no guest has: a third of the tree. Their Kconfig files are read.
    local -a unread=()
    local folder
    for folder in drivers/gpu drivers/media drivers/net/ethernet drivers/net/wireless drivers/infiniband \
        drivers/staging drivers/scsi sound; do
        unread+=(--exclude="*/$folder/*.[ch]")
    done
    tar -xJf "$archive" -C "$tree" --strip-components=1 --wildcards "${unread[@]}" \
        --exclude='*/Documentation/*.rst' --exclude='*/Documentation/*.yaml' --exclude='*/boot/dts/*' \
        --exclude='*/tools/testing/*' --exclude='*/tools/perf/*'
}

apply_patches() {
    local flavour=$1 tree=$2 version=$3 file
    while read -r file; do
        if ! patch -d "$tree" -p1 --forward --fuzz=1 --no-backup-if-mismatch <"$file" >"$tree/patch.log" 2>&1; then
            sed 's/^/    /' "$tree/patch.log" >&2
            die "the patch ${file#"$here/"} does not apply to $package $version." \
                "Port it as README.md says (\"A new Debian version\"), or build with the last version it" \
                "applied to: KATA_RS_LINUX_SOURCE=/path/to/linux-source-6.12.tar.xz"
        fi
    done < <(patch_files "$flavour")
}

# Every line of the fragments must hold in the final configuration: Kconfig drops a wish without a word
# when its dependencies are not met.
verify_config() {
    local config=$1 line name missing=()
    shift
    while read -r line; do
        case $line in
        CONFIG_*=*)
            name=${line%%=*}
            grep -qxF -- "$line" "$config" || missing+=("$line (is: $(grep -E "^(# )?$name[= ]" "$config" || echo "not offered"))")
            ;;
        '# CONFIG_'*' is not set')
            name=${line#\# }
            name=${name% is not set}
            if grep -q "^$name=" "$config"; then missing+=("$name must be off (is: $(grep "^$name=" "$config"))"); fi
            ;;
        esac
    done < <(cat "$@")
    if ((${#missing[@]})); then
        printf '    %s\n' "${missing[@]}" >&2
        die "${#missing[@]} option(s) of the fragments did not come true in this kernel version; see the list above"
    fi
}

configure() {
    local tree=$1 objects=$2
    shift 2
    mkdir -p "$objects"
    cat "$@" >"$objects/wishes"
    make -s -C "$tree" O="$objects" ARCH=x86_64 KCONFIG_ALLCONFIG="$objects/wishes" allnoconfig >"$objects/configure.log" 2>&1 ||
        { tail -n 20 "$objects/configure.log" >&2; die "the kernel's configure step failed"; }
    verify_config "$objects/.config" "$@"
}

compile() {
    local tree=$1 objects=$2 begun=$SECONDS
    note "compiling on $(nproc) processors: seven to eleven minutes of processor time (log: $objects/build.log)"
    # Same bytes for same input: no clock, no user, no host, no path.
    make -C "$tree" O="$objects" ARCH=x86_64 -j"$(nproc)" \
        KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 1970' KBUILD_BUILD_USER=kata-rs KBUILD_BUILD_HOST=kata-rs \
        KBUILD_BUILD_VERSION=1 vmlinux >"$objects/build.log" 2>&1 ||
        { grep -nE 'error|Error' "$objects/build.log" | head -n 20 >&2; tail -n 5 "$objects/build.log" >&2
          die "the kernel does not compile; whole log: $objects/build.log"; }
    note "compiled in $((SECONDS - begun)) s"
}

# Puts the result into the cache in one step: an interrupted build leaves no half entry.
store() {
    local flavour=$1 version=$2 objects=$3 entry=$4 fresh
    fresh=$(mktemp -d "$cache/.new.XXXXXX")
    strip --strip-all --remove-section=.comment -o "$fresh/vmlinux" "$objects/vmlinux"
    cp "$objects/System.map" "$fresh/System.map"
    cp "$objects/.config" "$fresh/config"
    {
        printf 'flavour %s\n' "$flavour"
        printf 'release %s\n' "$(cat "$objects/include/config/kernel.release")"
        printf 'source %s %s\n' "$package" "$version"
        printf 'compiler %s\n' "$(gcc --version | head -n1)"
        printf 'sha256 %s\n' "$(sha256sum "$fresh/vmlinux" | cut -d' ' -f1)"
    } >"$fresh/release"
    chmod 0755 "$fresh"
    chmod 0644 "$fresh"/*
    rm -rf "$entry"
    mv "$fresh" "$entry"
}

build() {
    local flavour=$1 archive=$2 entry=$3 work version fragments
    need_tools
    version=$(source_version "$archive")
    note "building the $flavour flavour from $package $version"
    # Fixed path: debug-free objects still carry path lengths here and there.
    work=$cache/build-$flavour
    exec 9>"$cache/build-$flavour.lock"
    flock 9
    if [[ -e $entry/vmlinux ]]; then return; fi
    rm -rf "$work"
    unpack "$archive" "$work/source"
    apply_patches "$flavour" "$work/source" "$version"
    mapfile -t fragments < <(fragment_files "$flavour")
    configure "$work/source" "$work/objects" "${fragments[@]}"
    compile "$work/source" "$work/objects"
    store "$flavour" "$version" "$work/objects" "$entry"
    rm -rf "$work"
}

deliver() {
    local entry=$1 out=$2
    mkdir -p "$(dirname "$out")"
    if cmp -s "$entry/vmlinux" "$out" && cmp -s "$entry/release" "$out.release"; then return; fi
    install -m 0644 "$entry/vmlinux" "$out"
    install -m 0644 "$entry/System.map" "$out.map"
    install -m 0644 "$entry/config" "$out.config"
    install -m 0644 "$entry/release" "$out.release"
}

main() {
    local only_key='' flavour out archive key entry
    if [[ ${1:-} == --key ]]; then only_key=1; shift; fi
    flavour=${1:-}
    out=${2:-}
    case $flavour in hw | pvm) ;; *) usage ;; esac
    [[ -n $only_key || -n $out ]] || usage
    cache=${XDG_CACHE_HOME:-$HOME/.cache}/kata-rs/kernel
    archive=$(source_archive)
    key=$(content_key "$flavour" "$archive")
    if [[ -n $only_key ]]; then printf '%s\n' "$key"; return; fi
    entry=$cache/$key
    if [[ ! -e $entry/vmlinux ]]; then build "$flavour" "$archive" "$entry"; fi
    deliver "$entry" "$out"
    note "$flavour: $(sed -n 's/^release //p' "$entry/release") from $(sed -n 's/^source //p' "$entry/release") -> $out"
}

main "$@"
