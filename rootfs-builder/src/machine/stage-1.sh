#!/bin/sh
# The emulated machine's first program: finds the two disks, lays them over each other, and hands over to stage 2.
# Runs from the initramfs; anything that fails here is on the console and ends the machine.
BB=/bin/busybox

stop() {
    echo "stage-1: $*"
    $BB poweroff -f
}

$BB mount -t devtmpfs none /dev
# To the kernel's log: unlike a terminal's output, that is on the console before the machine goes down.
exec >/dev/kmsg 2>&1
$BB mount -t proc none /proc
for module in /modules/*.ko; do
    $BB insmod "$module" || stop "cannot load $module"
done
# The disks appear when the bus has been scanned, which a module's loading does not wait for.
waited=0
while [ ! -b /dev/vdb ]; do
    [ $waited -lt 100 ] || stop "no disks"
    waited=$((waited + 1))
    $BB usleep 50000
done
$BB mount -t erofs -o ro /dev/vda /base || stop "cannot mount the base"
$BB mount -t erofs -o ro /dev/vdb /payload || stop "cannot mount the payload"
$BB mount -t tmpfs -o size=75% memory /memory
$BB mkdir /memory/upper /memory/work
$BB mount -t overlay -o lowerdir=/payload:/base,upperdir=/memory/upper,workdir=/memory/work root /root || stop "no root"
$BB mount -t tmpfs -o mode=755 run /root/run
$BB cp -r /run-spec /root/run/spec
$BB mount --move /dev /root/dev
$BB mount --move /proc /root/proc
exec $BB switch_root /root /usr/sbin/stage-2
stop "cannot start stage 2"
