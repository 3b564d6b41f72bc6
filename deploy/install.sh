#!/bin/sh
# Lays kata-rs out by version, so that an upgrade never touches a running pod:
#
#   PREFIX/versions/VERSION/{bin,libexec,share}   written once, never changed
#   PREFIX/current -> versions/VERSION            switched in one step
#   PREFIX/bin/* -> ../current/bin/*              what goes on containerd's PATH
#
# A shim knows itself by /proc/self/exe, in which the kernel has resolved the links: it takes the VMM, the file server,
# the kernels and the guest image of its own version for as long as its pod lives.
#
# VERSION is the program's version and a digest of the files, so one name never stands for two builds.
set -eu
# Folders that everybody may look into, whatever the caller's habit.
umask 022

usage() {
	cat <<-'END'
	usage: install.sh COMMAND [--prefix DIR] [--root DIR] [--from DIR]
	  install          install the files of DIR (default: where this script is) and make them current
	  list             show the versions: current, in use by which processes
	  use VERSION      make an installed version current (for going back)
	  remove VERSION   remove a version; refused while it is current or a process of it runs
	  prune            remove all versions that are neither current nor in use
	  uninstall        remove everything; refused while a process of any version runs
	  --prefix DIR     default /opt/kata-rs
	  --root DIR       a root below which the prefix is, for packaging (DESTDIR)
	END
}

fail() {
	echo "install.sh: $*" >&2
	exit 1
}

# Pids of the processes that run a program of the version, from their executables. A removed file still shows, with a suffix.
pids_of() {
	folder=$(cd "$1" && pwd -P)
	for exe in /proc/[0-9]*/exe; do
		case $(readlink "$exe" 2>/dev/null || true) in
		"$folder"/*)
			pid=${exe#/proc/}
			echo "${pid%/exe}"
			;;
		esac
	done
}

refuse_in_use() {
	pids=$(pids_of "$1" | tr '\n' ' ')
	[ -z "$pids" ] || fail "the version ${1##*/} is in use by the processes $pids- their pods have to end first"
}

check_version() {
	case $1 in
	'' | .* | */*) fail "not the name of a version: '$1' (install.sh list shows them)" ;;
	esac
	[ -d "$versions/$1" ] || fail "the version $1 is not installed (install.sh list shows those that are)"
}

current() {
	link=$(readlink "$top/current" 2>/dev/null || true)
	echo "${link#versions/}"
}

# A link is replaced by renaming a new one over it: whoever looks sees the old or the new, never nothing.
point() {
	ln -s "$2" "$1.new.$$"
	mv -T "$1.new.$$" "$1"
}

digest() {
	(cd "$1" && find bin libexec share -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum) | sha256sum | cut -c1-12
}

version_of() {
	number=$("$1/bin/kata-rs" --version) || fail "$1/bin/kata-rs does not run on this host"
	echo "${number##* }-$(digest "$1")"
}

switch() {
	mkdir -p "$top/bin"
	point "$top/current" "versions/$1"
	for program in "$versions/$1"/bin/*; do
		name=${program##*/}
		[ "$(readlink "$top/bin/$name" 2>/dev/null)" = "../current/bin/$name" ] || point "$top/bin/$name" "../current/bin/$name"
	done
}

install_version() {
	for file in bin/kata-rs bin/containerd-shim-kata-rs-v2 libexec/kata-rs/kata-rs-vmm libexec/kata-rs/virtiofsd share/kata-rs/guest.erofs; do
		[ -s "$from/$file" ] || fail "$from/$file is missing: --from has to name a complete build (make build: target/stage)"
	done
	version=$(version_of "$from")
	if [ ! -d "$versions/$version" ]; then
		mkdir -p "$versions"
		draft=$versions/.new.$$
		trap 'rm -rf "$draft"' EXIT
		mkdir "$draft"
		cp -R -p "$from/bin" "$from/libexec" "$from/share" "$draft/"
		[ "$(digest "$draft")" = "${version##*-}" ] || fail "the files in $from changed while they were copied: try again"
		# On disk before it has its name, which makes it look complete.
		sync
		mv -T "$draft" "$versions/$version"
		trap - EXIT
	fi
	switch "$version"
	echo "$version"
}

list() {
	for folder in "$versions"/*/; do
		[ -d "$folder" ] || continue
		folder=${folder%/}
		pids=$(pids_of "$folder" | tr '\n' ' ')
		mark=' '
		[ "${folder##*/}" != "$(current)" ] || mark='*'
		echo "$mark ${folder##*/} ${pids:+in use by }${pids}"
	done
}

remove() {
	[ "$1" != "$(current)" ] || fail "the version $1 is current: make another one current first (install.sh use VERSION), or uninstall"
	refuse_in_use "$versions/$1"
	# Out of its name at once, so that nothing finds half of it.
	mv -T "$versions/$1" "$versions/.old.$$"
	rm -rf "$versions/.old.$$"
}

prune() {
	for folder in "$versions"/*/; do
		[ -d "$folder" ] || continue
		folder=${folder%/}
		if [ "${folder##*/}" != "$(current)" ] && [ -z "$(pids_of "$folder")" ]; then
			remove "${folder##*/}"
			echo "removed ${folder##*/}"
		fi
	done
}

refuse_any_in_use() {
	for folder in "$versions"/*/; do
		[ ! -d "$folder" ] || refuse_in_use "${folder%/}"
	done
}

uninstall() {
	[ -d "$versions" ] || return 0
	refuse_any_in_use
	was=$(current)
	for link in "$top/bin"/*; do
		case $(readlink "$link" 2>/dev/null || true) in
		../current/bin/*) rm -f "$link" ;;
		esac
	done
	rm -f "$top/current"
	# A pod may have begun to start between the look and the end of the links; from here on none can.
	(refuse_any_in_use) || {
		[ -z "$was" ] || switch "$was"
		exit 1
	}
	rm -rf "$versions"
	rmdir "$top/bin" "$top" 2>/dev/null || true
}

[ $# -gt 0 ] || { usage >&2; exit 2; }
command=$1
shift
prefix=/opt/kata-rs root='' from='' name=''
while [ $# -gt 0 ]; do
	case $1 in
	--prefix | --root | --from)
		[ $# -gt 1 ] || fail "$1 wants a folder"
		case $1 in
		--prefix) prefix=$2 ;;
		--root) root=$2 ;;
		--from) from=$2 ;;
		esac
		shift 2
		;;
	-*) usage >&2; fail "unknown flag $1" ;;
	*) [ -z "$name" ] || fail "one version at a time"; name=$1; shift ;;
	esac
done
case $prefix in /*) ;; *) fail "--prefix has to begin with /: $prefix" ;; esac
top=$root$prefix
versions=$top/versions
# Installed, this script is share/kata-rs/deploy/install.sh of a version.
[ -n "$from" ] || from=$(cd "$(dirname "$0")/../../.." && pwd -P)
# Two at a time would undo each other's switch.
if [ "$command" != list ] && [ "$command" != help ]; then
	mkdir -p "${top%/*}"
	exec 9<"${top%/*}"
	flock 9
fi
case $command in
install) install_version ;;
list) list ;;
use) check_version "$name"; switch "$name" ;;
remove) check_version "$name"; remove "$name" ;;
prune) prune ;;
uninstall) uninstall ;;
help) usage ;;
*) usage >&2; fail "unknown command $command" ;;
esac
