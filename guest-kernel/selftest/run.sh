#!/usr/bin/env bash
# Boots a guest kernel under QEMU with selftest/init.c as its only program, and fails unless every check
# passes. QEMU is a test tool here; no part of a run of kata-rs uses it.
#
#   selftest/run.sh VMLINUX kvm|tcg [MEMORY-MiB [CPUS]]
#
# kvm: this host's /dev/kvm. tcg: emulated, for the hw flavour where the host has no hardware virtualisation.
# Needs gcc with a static libc, cpio and qemu-system-x86_64. KATA_RS_SELFTEST_APPEND adds to the command line.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
(($# >= 2)) || { echo "usage: run.sh VMLINUX kvm|tcg [MEMORY-MiB [CPUS]]" >&2; exit 2; }
vmlinux=$1
accelerator=$2
memory=${3:-128}
cpus=${4:-1}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

case $accelerator in
# kvm-clock needs neither timer nor interrupt controller of the PC.
kvm) machine=(-M microvm,acpi=off,rtc=off,pit=off,pic=off -enable-kvm -cpu host) ;;
tcg) machine=(-M microvm,acpi=off,rtc=off -accel tcg,thread=multi -cpu EPYC) ;;
*) echo "run.sh: the accelerator is kvm or tcg, not $accelerator" >&2; exit 2 ;;
esac

mkdir "$work/root"
gcc -O2 -static -Wall -Wextra -o "$work/root/init" "$here/init.c"
(cd "$work/root" && find . | LC_ALL=C sort | cpio -o -H newc --quiet >"$work/initrd")

# The clock of a machine without kvm-clock is too coarse for the short measurements; the checks hold.
timeout "${KATA_RS_SELFTEST_TIMEOUT:-180}" qemu-system-x86_64 "${machine[@]}" -m "$memory" -smp "$cpus" \
    -nodefaults -no-user-config -display none -no-reboot -kernel "$vmlinux" -initrd "$work/initrd" \
    -append "loglevel=4 ${KATA_RS_SELFTEST_APPEND:-} console=hvc0 earlyprintk=ttyS0 reboot=t,f panic=-1" \
    -serial "file:$work/early" -device virtio-serial-device,max_ports=1 \
    -chardev stdio,id=console,signal=off -device virtconsole,chardev=console </dev/null 2>"$work/errors" |
    tr -d '\r' | tee "$work/output" || true

if ! grep -qx 'selftest: 0 failures' "$work/output"; then
    grep '^FAIL' "$work/output" >&2 || { echo "run.sh: the test did not finish; early messages and QEMU's:" >&2
                                         tail -n 20 "$work/early" "$work/errors" >&2; }
    exit 1
fi
