#!/bin/busybox sh
# First program of the guest, in the initramfs: loads modules and makes the host's files the root file system.
# Standard output is the second serial port, which the host shows; the first is the kernel's.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
exec </dev/null >/dev/ttyS1 2>&1
$b stty -F /dev/ttyS1 -opost

fail() {
    echo "guest: $1"
    $b poweroff -f
}

while read -r module; do
    $b insmod "/modules/$module.ko" || fail "cannot load module $module"
done </modules/order

$b mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=524288,cache=loose host /host || fail "cannot mount the host's files"
$b mount -t tmpfs layer /layer
$b mkdir /layer/upper /layer/work
$b mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work root /root || fail "cannot mount the root file system"
for directory in proc sys dev; do
    $b mount -o move "/$directory" "/root/$directory"
done
$b mount -t tmpfs run /root/run
$b cp /bin/busybox /guest.sh /job.sh /root/run
exec $b switch_root /root /bin/sh /run/guest.sh
