# Debian packages of any suite: unpacked below the cache, not installed. Sourced by the scripts of
# this directory:
#
#   . ci/debian.sh NAME    in the root of the tree; NAME begins every message
#
# Everything that apt writes stays in the cache; the machine's lists and sources are not touched.
# The sources are the machine's own with the suite replaced: no mirror is named here, and apt
# verifies what it fetches with the machine's keyring.
# shellcheck shell=bash
. ci/progress.sh "$1"
cache=${VM_HARNESS_CACHE:-$PWD/target/cache}
mkdir -p "$cache"

for needed in apt-get dpkg; do
  command -v "$needed" >/dev/null || die "$needed is missing: this script needs Debian"
done

apt_dir=$cache/apt
machine_sources() {
  if [ -f /etc/apt/sources.list.d/debian.sources ]; then
    cat /etc/apt/sources.list.d/debian.sources
  else
    die "/etc/apt/sources.list.d/debian.sources is missing: this script reads Debian's mirror from it"
  fi
}
apt_for() { # apt_for SUITE COMMAND...: run the apt command with SUITE's private lists
  local suite=$1 tool=$2; shift 2
  local dir=$apt_dir/$suite
  "$tool" -qq -o Dir::Etc::sourcelist="$dir/suite.sources" -o Dir::Etc::sourceparts=/dev/null \
    -o Dir::State::lists="$dir/lists" -o Dir::Cache="$dir/cache" -o DPkg::Lock::Timeout=300 "$@"
}
# apt_lists SUITE: fetch its package lists once a day. SUITE-source: its lists of source packages.
apt_lists() {
  local suite=${1%-source} dir=$apt_dir/$1 types=deb
  if [ "$suite" != "$1" ]; then types=deb-src; fi
  mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
  if [ -n "$(find "$dir/fetched" -mmin -1440 2>/dev/null)" ]; then return; fi
  # The first stanza is the main archive. The second one is that of security updates, whose suites
  # have other names.
  machine_sources | awk -v suite="$suite" -v types="$types" 'BEGIN { RS = ""; ORS = "\n\n" } NR == 1 {
      gsub(/(^|\n)Types:[^\n]*/, "\nTypes: " types); gsub(/(^|\n)Suites:[^\n]*/, "\nSuites: " suite)
      sub(/^\n/, ""); print }' >"$dir/suite.sources"
  timed "fetching the package lists of $1" apt_for "$1" apt-get update || return
  touch "$dir/fetched"
}

unpack() { # unpack SUITE DIRECTORY PACKAGE...: only these packages, without what they depend on
  local suite=$1 directory=$2; shift 2
  if [ -d "$directory" ]; then return; fi
  apt_lists "$suite"
  rm -rf "$directory.new" && mkdir -p "$directory.new"
  unpack_into "$suite" "$directory.new" "$@"
  mv "$directory.new" "$directory"
}
# unpack_into SUITE DIRECTORY PACKAGE...: the same, beside what is there
unpack_into() {
  local suite=$1 directory=$2; shift 2
  timed "fetching $* of $suite" download "$suite" "$directory" "$@"
  for package in "$directory"/*.deb; do dpkg -x "$package" "$directory"; done
  rm "$directory"/*.deb
}

download() { # download SUITE DIRECTORY PACKAGE...: the .deb files
  local suite=$1 directory=$2; shift 2
  (cd "$directory" && apt_for "$suite" apt-get -o APT::Sandbox::User=root download "$@" >&2)
}

kernel() { # kernel SUITE: the suite's cloud kernel, in $cache/kernels/SUITE
  kernel_of "$1" linux-image-cloud-amd64 "$1"
}
# generic_kernel SUITE: its kernel with all modules, in $cache/kernels/generic. The cloud kernels
# have neither 9p nor virtio-fs.
generic_kernel() {
  kernel_of "$1" linux-image-amd64 generic
}
# kernel_of SUITE PACKAGE NAME: the kernel that the metapackage PACKAGE depends on, in
# $cache/kernels/NAME
kernel_of() {
  local suite=$1 package=$2 name=$3 image parts
  if [ -e "$cache/kernels/$name/usr" ] || [ -e "$cache/kernels/$name/boot" ]; then return; fi
  apt_lists "$suite"
  mkdir -p "$cache/kernels"
  image=$(depends "$suite" "$package" | grep '^linux-image-') || die "$package of $suite depends on no kernel"
  # Since 7.x the kernel, its modules and their lists are separate packages, which the package of
  # the image depends on.
  parts=$(depends "$suite" "$image" | grep -E '^linux-(base|binary|modules)-') || parts=$image
  # Unquoted: one package a word.
  # shellcheck disable=SC2086
  unpack "$suite" "$cache/kernels/$image" $parts
  ln -sfn "$image" "$cache/kernels/$name"
}
depends() { # depends SUITE PACKAGE: the packages that PACKAGE depends on, one a line
  apt_for "$1" apt-cache depends "$2" | awk '/Depends: / { print $2 }'
}

# unpack_all SUITE DIRECTORY PACKAGE...: these packages with all their dependencies, including the C
# library
unpack_all() {
  local suite=$1 directory=$2 dir=$apt_dir/$1; shift 2
  apt_lists "$suite"
  rm -rf "$directory" && mkdir -p "$directory" "$dir/state"
  # An empty status file: apt assumes that nothing is installed, and fetches all dependencies.
  : >"$dir/state/status"
  # Packages that were installed from this suite may still be there.
  rm -f "$dir/cache/archives"/*.deb
  timed "fetching $* of $suite with dependencies" download_all "$suite" "$dir" "$@"
  for package in "$dir/cache/archives"/*.deb; do
    dpkg -x "$package" "$directory"
    dpkg-deb --show "$package" >>"$directory/packages"
  done
  rm "$dir/cache/archives"/*.deb
}

download_all() { # download_all SUITE DIRECTORY PACKAGE...: the .deb files, in DIRECTORY/cache
  local suite=$1 dir=$2; shift 2
  apt_for "$suite" apt-get -o Dir::State="$dir/state" -o Dir::State::status="$dir/state/status" \
    -o APT::Sandbox::User=root install --yes --download-only --no-install-recommends "$@" >&2
}

# qemu SUITE: the suite's QEMU with its dependencies; the program is
# $cache/qemu/SUITE/qemu-system-x86_64
qemu() {
  local suite=$1 tree=$cache/qemu/$1 version
  if [ -x "$tree/qemu-system-x86_64" ]; then return; fi
  unpack_all "$suite" "$tree.new" qemu-system-x86
  version=$(awk '$1 == "qemu-system-x86" { print $2 }' "$tree.new/packages")
  # The C library of a newer suite needs its own loader. QEMU searches modules and firmware in the
  # directories that it was built for, and beside the program.
  cat >"$tree.new/qemu-system-x86_64" <<EOF
#!/bin/sh
# QEMU $version
tree=\$(dirname "\$(realpath "\$0")")
export QEMU_MODULE_DIR="\$tree/usr/lib/x86_64-linux-gnu/qemu"
exec "\$tree/lib64/ld-linux-x86-64.so.2" \\
  --library-path "\$tree/usr/lib/x86_64-linux-gnu:\$tree/lib/x86_64-linux-gnu:\$tree/usr/lib/x86_64-linux-gnu/sasl2" \\
  "\$tree/usr/bin/qemu-system-x86_64" -L "\$tree/usr/share/qemu" -L "\$tree/usr/share/seabios" "\$@"
EOF
  chmod 755 "$tree.new/qemu-system-x86_64"
  # Since /lib64 was merged into /usr the packages have their files in /usr/lib64 only.
  if [ ! -e "$tree.new/lib64/ld-linux-x86-64.so.2" ]; then ln -sfn usr/lib64 "$tree.new/lib64"; fi
  echo quit | "$tree.new/qemu-system-x86_64" -machine none -accel tcg -display none -serial none \
    -monitor stdio >/dev/null || die "QEMU $version of $suite does not start here"
  rm -rf "$tree" && mv "$tree.new" "$tree"
}

# libvirt SUITE: its libvirtd and virsh with their libraries, as a tree that is laid below the
# machine's own /usr: $cache/libvirt. SUITE is the machine's own: both use one C library.
libvirt() {
  local suite=$1 tree=$cache/libvirt directory
  if [ -d "$tree" ]; then return; fi
  unpack_all "$suite" "$tree.new" libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients
  # Where /lib was merged into /usr, what a package has in /lib is found in /usr/lib.
  for directory in bin lib lib64 sbin; do
    if [ -d "$tree.new/$directory" ]; then
      cp -a "$tree.new/$directory/." "$tree.new/usr/$directory/"
      rm -rf "${tree:?}.new/$directory"
    fi
  done
  # Not needed to run a VM; that of networks ends libvirtd where there is no firewall.
  find "$tree.new/usr/lib/x86_64-linux-gnu/libvirt/connection-driver" -name 'libvirt_driver_*.so' \
    ! -name libvirt_driver_qemu.so -delete
  LD_LIBRARY_PATH=$tree.new/usr/lib/x86_64-linux-gnu "$tree.new/usr/bin/virsh" --version \
    >/dev/null || die "virsh of $suite does not start here"
  mv "$tree.new" "$tree"
}

# virtiofsd: the server of virtio-fs with its libraries; the program is $cache/virtiofsd/virtiofsd
virtiofsd() {
  local tree=$cache/virtiofsd
  if [ -x "$tree/virtiofsd" ]; then return; fi
  rm -rf "$tree"
  # Debian 12 has no virtiofsd, and its C library is too old for that of Debian 13.
  unpack trixie "$tree" virtiofsd libc6 libcap-ng0 libgcc-s1 libseccomp2
  cat >"$tree/virtiofsd" <<'EOF'
#!/bin/sh
tree=$(dirname "$(realpath "$0")")
exec "$tree/usr/lib64/ld-linux-x86-64.so.2" --library-path "$tree/usr/lib/x86_64-linux-gnu" "$tree/usr/libexec/virtiofsd" "$@"
EOF
  chmod 755 "$tree/virtiofsd"
  "$tree/virtiofsd" --version >/dev/null || die "virtiofsd of trixie does not start here"
}

# containerd SUITE: its containerd with crun, and busybox for images, as the root directory for a
# chroot: $cache/containerd/SUITE
containerd() {
  local suite=$1 tree=$cache/containerd/$1 directory
  if [ -d "$tree" ]; then return; fi
  unpack_all "$suite" "$tree.new" containerd crun busybox-static
  # Newer packages have their files in /usr only; the links would be those of base-files.
  for directory in bin lib lib64 sbin; do
    if [ ! -e "$tree.new/$directory" ]; then ln -s "usr/$directory" "$tree.new/$directory"; fi
  done
  chroot "$tree.new" /usr/bin/containerd --version >/dev/null ||
    die "containerd of $suite does not start here"
  chroot "$tree.new" /bin/busybox true || die "busybox of $suite does not start here"
  rm -rf "$tree" && mv "$tree.new" "$tree"
}

# systemd SUITE: its systemd and udev with their libraries, as a tree that is copied over a guest's
# root: $cache/systemd
systemd() {
  local suite=$1 tree=$cache/systemd all=$cache/systemd.all directory
  if [ -e "$tree/sbin/init" ]; then return; fi
  unpack_all "$suite" "$all" systemd systemd-sysv udev
  rm -rf "$tree.new" && mkdir -p "$tree.new/sbin"
  # The guest has its own units. It needs neither the database of hardware nor character sets.
  for directory in bin etc/udev lib/systemd lib/udev lib/x86_64-linux-gnu lib64 \
    usr/bin usr/lib/systemd usr/lib/udev usr/lib/x86_64-linux-gnu usr/lib64; do
    if [ -d "$all/$directory" ]; then
      mkdir -p "$(dirname "$tree.new/$directory")"
      cp -a "$all/$directory" "$tree.new/$directory"
    fi
  done
  find "$tree.new" \( -name hwdb.d -o -name gconv -o -name system-generators -o -name catalog \
    -o -name busybox -o -name crun -o -name user \) -prune -exec rm -rf {} +
  for directory in /lib /usr/lib; do
    if [ -x "$tree.new$directory/systemd/systemd" ]; then
      ln -s "$directory/systemd/systemd" "$tree.new/sbin/init"
    fi
  done
  rm -rf "$tree" "$all" && mv "$tree.new" "$tree"
}

# minimal_debian SUITE DIRECTORY PACKAGES: a Debian with apt and these packages, separated by
# commas, that were configured (root)
minimal_debian() {
  local suite=$1 directory=$2 packages=$3 own
  own=$(. /etc/os-release && echo "$VERSION_CODENAME")
  unpack "$own" "$cache/mmdebstrap" mmdebstrap
  apt_lists "$suite"
  rm -rf "$directory.new"
  "$cache/mmdebstrap/usr/bin/mmdebstrap" --quiet --mode=root --variant=apt \
    --include="$packages" "$suite" "$directory.new" "$apt_dir/$suite/suite.sources" >&2
  mv "$directory.new" "$directory"
}

# node_image: a Debian node with systemd, containerd and what a runtime for VMs needs, as the file
# system of a disk: $cache/node/root.ext4. Its kernel is $cache/kernels/node.
node_suite=trixie
node_packages=systemd-sysv,udev,kmod,containerd,runc,containernetworking-plugins,iptables
node_packages+=,iproute2,qemu-system-x86,virtiofsd,busybox-static,e2fsprogs,mount,procps
node_image() {
  local directory=$cache/node tree=$cache/node/tree built
  kernel_of "$node_suite" linux-image-amd64 node
  built=$({ echo "$node_suite $node_packages $(readlink "$cache/kernels/node")"
    declare -f node_image
    find images/node -type f -print0 | sort -z | xargs -0 sha256sum; } | sha256sum)
  if [ "$(cat "$directory/built" 2>/dev/null)" = "$built" ]; then return; fi
  [ "$(id -u)" = 0 ] || die "a node's image needs root: its packages are configured in a chroot"
  rm -rf "$directory" && mkdir -p "$directory"
  timed "unpacking and configuring a Debian node" \
    minimal_debian "$node_suite" "$tree" "$node_packages"
  cp -r images/node/. "$tree"
  mkdir -p "$tree/usr/lib/modules" "$tree/opt/vm-harness"
  cp -r "$cache/kernels/node/usr/lib/modules/." "$tree/usr/lib/modules"
  chroot "$tree" depmod "$(ls "$tree/usr/lib/modules")"
  # Nothing has to be brought up to date at a boot.
  touch "$tree/etc/.updated" "$tree/var/.updated"
  # Empty: systemd makes an ID at every boot, and none is its first.
  : >"$tree/etc/machine-id"
  mke2fs -q -t ext4 -L node -d "$tree" "$directory/root.ext4" 4G >&2
  rm -rf "$tree"
  echo "$built" >"$directory/built"
}
