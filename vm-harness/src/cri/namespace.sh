# shellcheck shell=sh
# PID 1 of the namespaces of a container engine: everything in them ends with it.
# Arguments: the root directory of the suite, a directory of the test.
set -eu
tree=$1 directory=$2
# /proc is still the host's, and so is this number.
read -r id _ </proc/self/stat

# What the engine writes is in memory and ends with the mount namespace.
mount -t tmpfs -o mode=755 tmpfs "$directory/mnt"
cd "$directory/mnt"
mkdir upper work root
mount -t overlay -o "lowerdir=$tree,upperdir=upper,workdir=work" overlay root
mkdir -p root/dev root/etc root/host root/proc root/run root/sys root/tmp
# The engine copies them into each pod.
touch root/etc/hosts root/etc/resolv.conf
mount -t proc proc root/proc
mount --rbind /dev root/dev
mount -t sysfs sysfs root/sys
# Whatever the host has: crun accepts no host with both hierarchies.
mount -t cgroup2 cgroup2 root/sys/fs/cgroup
mount --bind "$directory/host" root/host
echo "$id" >"$directory/pid.new"
mv "$directory/pid.new" "$directory/pid"

# Not `exec`: a shell reaps the shims, which outlive their parents.
PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/ chroot root \
  /usr/bin/containerd --config /host/config.toml &
wait $!
