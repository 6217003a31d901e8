# shellcheck shell=sh
# PID 1 of the namespaces of libvirt: everything in them, QEMU included, ends with it.
# Arguments: the tree with libvirt, a directory with its configuration.
set -eu
tree=$1 directory=$2
mount -t proc proc /proc
mkdir -p "$directory/mnt"
mount -t tmpfs -o mode=755 tmpfs "$directory/mnt"
cd "$directory/mnt"
# All paths of the machine stay what they are; what it has itself wins over the tree.
mount -t overlay -o "lowerdir=/usr:$tree/usr" overlay /usr
# What libvirt writes is in memory and ends with the mount namespace.
for part in etc var; do
  mkdir "$part.upper" "$part.work"
  mount -t overlay -o "lowerdir=/$part,upperdir=$part.upper,workdir=$part.work" overlay "/$part"
done
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /etc/libvirt /var/log/libvirt
cp "$directory/libvirtd.conf" "$directory/qemu.conf" /etc/libvirt
# libvirt looks Debian's user up, also if its QEMU runs as root.
echo 'libvirt-qemu:x:64055:64055::/nonexistent:/bin/false' >>/etc/passwd
echo 'libvirt-qemu:x:64055:' >>/etc/group
# Not `exec`: a shell reaps QEMU, which outlives its parent.
/usr/sbin/libvirtd --config /etc/libvirt/libvirtd.conf &
wait $!
