#!/bin/sh
# The emulated machine's init: mounts what a Debian host has, loads KVM, runs one command, reports its status, ends.
# The command, its environment and its shares are in /run/spec, written by `rootfs-builder emulated-machine run`.
export PATH=/opt/kata-rs/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C

mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t sysfs none /sys
mount -t devpts -o mode=620,gid=5,ptmxmode=666 none /dev/pts
mount -t tmpfs -o mode=1777 none /dev/shm
mount -t mqueue none /dev/mqueue
mount -t cgroup2 none /sys/fs/cgroup
mount -t securityfs none /sys/kernel/security
mount -t bpf none /sys/fs/bpf
mount -t tracefs none /sys/kernel/tracing
# Not on the overlay: containerd lays overlays of its own in these.
for folder in /tmp /var/lib /var/tmp; do
    mount -t tmpfs -o mode=1777 none $folder
done
mkdir -p /var/lib/containerd /root
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr
hostname emulated
ip link set lo up
for module in kvm_amd 9p 9pnet_virtio tun vhost_net fuse loop virtio_rng; do
    modprobe $module || echo "stage-2: cannot load $module"
done
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
done
[ ! -e /run/spec/share ] || mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,ro,cache=loose share /share
[ ! -e /run/spec/out ] || mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 out /out

# The device of the port with this name.
port() {
    for folder in /sys/class/virtio-ports/*; do
        [ "$(cat $folder/name)" != "$1" ] || echo "/dev/${folder##*/}"
    done
}

sh /run/spec/command </dev/null >"$(port output)" 2>&1
status=$?
[ ! -e /run/spec/out ] || umount /out
echo "exit $status" >"$(port status)"
poweroff -f
