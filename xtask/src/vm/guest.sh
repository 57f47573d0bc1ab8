# Second program of the guest, with the host's files as root: mounts what a Linux system has, runs the job,
# tells the host its exit code and switches off.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
# The host's /tmp stays visible, since a checkout may be there; what the guest makes goes elsewhere.
export TMPDIR=/run/tmp
mkdir -p /dev/pts /dev/shm /run/netns /run/lock
mkdir -m 1777 /run/tmp
mount -t tmpfs shm /dev/shm
mount -t devpts devpts /dev/pts
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
mount --make-rshared /
ip link set lo up
hostname fairlead-vm 2>/dev/null || echo fairlead-vm >/proc/sys/kernel/hostname

# Through a pipe, because programs draw progress bars on a terminal.
{
    sh /run/job.sh
    echo $? >/run/exit-code
} 2>&1 | cat
echo "fairlead-vm: exit $(cat /run/exit-code)"
/run/busybox poweroff -f
