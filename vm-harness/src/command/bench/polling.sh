# What the shell of a container does: it looks for the disk every 100 ms and makes the node. The
# kernel of this guest adds no disk by itself (scsi_mod.scan=none), so the shell scans, too.
# Arguments: the host, the target and the LUN of the disk. /dev/guest-sys is the guest's sysfs.
host=$1 target=$2 lun=$3
while :; do
  echo "0 $target $lun" >"/dev/guest-sys/class/scsi_host/host$host/scan"
  found=no
  for number in "/dev/guest-sys/bus/scsi/devices/$host:0:$target:$lun"/block/*/dev; do
    if [ ! -e "$number" ]; then continue; fi
    found=yes
    if [ -e /dev/polled ]; then continue; fi
    IFS=: read -r major minor <"$number"
    mknod /dev/polled b "$major" "$minor"
    if dd if=/dev/polled of=/dev/null bs=512 count=1 2>/dev/null; then echo made; fi
  done
  if [ $found = no ] && [ -e /dev/polled ]; then
    rm /dev/polled
    echo removed
  fi
  sleep 0.1
done
