//! The arguments that Kata's runtimes give to QEMU, shortened by what has no path and no name.

use rstest::rstest;

use super::*;

const SID: &str = "4f1c9c1e6b7d4a5f8e2b3c0d1a9f8e7d6c5b4a3f2e1d0c9b8a7f6e5d4c3b2a1f";

/// Splits at white space; SID stands for the sandbox's ID.
fn words(line: &str) -> Vec<OsString> {
    line.replace("SID", SID).split_whitespace().map(OsString::from).collect()
}

/// Go runtime 3.30 and 4.1.
const GO: &str = "-name sandbox-SID -uuid 1 -machine q35,accel=kvm,nvdimm=on -cpu host,pmu=off
    -qmp unix:fd=3,server=on,wait=off -m 2048M,slots=10,maxmem=7965M
    -device pci-bridge,bus=pcie.0,id=pci-bridge-0,chassis_nr=1,shpc=off,addr=2
    -device virtio-serial-pci,disable-modern=false,id=serial0 -device virtconsole,chardev=charconsole0,id=console0
    -chardev socket,id=charconsole0,path=/run/vc/vm/SID/console.sock,server=on,wait=off
    -device virtio-scsi-pci,id=scsi0,disable-modern=false
    -object rng-random,id=rng0,filename=/dev/urandom -device virtio-rng-pci,rng=rng0
    -device vhost-vsock-pci,disable-modern=false,vhostfd=4,id=vsock-1,guest-cid=2976019715
    -chardev socket,id=char-1,path=/run/vc/vm/SID/vhost-fs.sock -device vhost-user-fs-pci,chardev=char-1,tag=kataShared
    -netdev tap,id=network-0,vhost=on,vhostfds=5,fds=6 -rtc base=utc,driftfix=slew,clock=host
    -global kvm-pit.lost_tick_policy=discard -vga none -no-user-config -nodefaults -nographic --no-reboot
    -object memory-backend-file,id=dimm1,size=2048M,mem-path=/dev/shm,share=on -numa node,memdev=dimm1
    -kernel /opt/kata/vmlinux -append quiet -pidfile /run/vc/vm/SID/pid
    -smp 1,cores=1,threads=1,sockets=4,maxcpus=4";
/// Rust runtime 4.1.
const RUST: &str = "-name sandbox-SID -kernel /opt/kata/vmlinux -append quiet -smp 1,maxcpus=4
    -machine q35,accel=kvm -cpu host -m 2048M -qmp unix:fd=20,server=on,wait=off
    -device vhost-vsock-pci,vhostfd=16,guest-cid=3 -netdev tap,id=n0,fds=17:19
    -chardev socket,id=virtiofsd-chardev,path=/run/kata/SID/root/virtiofsd.sock
    -chardev socket,id=charconsole0,path=/run/kata/SID/root/console.sock,server=on,wait=off
    -no-user-config -nodefaults -nographic -vga none -no-reboot";

#[rstest]
#[case::go(GO, &["/run/vc/vm/SID"])]
#[case::rust(RUST, &["/run/kata/SID"])]
#[case::go_debug("-name sandbox-SID,debug-threads=on -pidfile /run/vc/vm/SID/pid", &["/run/vc/vm/SID"])]
#[case::go_rootless("-name sandbox-SID -pidfile /run/user/1001/run/vc/vm/SID/pid
    -chardev socket,id=charconsole0,path=/run/user/1001/run/vc/vm/SID/console.sock,server=on,wait=off",
    &["/run/user/1001/run/vc/vm/SID"])]
#[case::rust_rootless("-name sandbox-SID
    -chardev socket,id=c,path=/run/user/1001/run/kata/SID/root/console.sock,server=on,wait=off",
    &["/run/user/1001/run/kata/SID"])]
#[case::template("-name sandbox-SID -S -incoming defer -pidfile /run/vc/vm/template/SID/pid",
    &["/run/vc/vm/template/SID"])]
#[case::go_before_descriptors("-name sandbox-SID -qmp unix:/run/vc/vm/SID/qmp.sock,server=on,wait=off",
    &["/run/vc/vm/SID"])]
#[case::name_with_a_key("--name debug-threads=on,guest=sandbox-SID", &[])]
#[case::last_name("-name other -name sandbox-SID", &[])]
#[case::foreign_paths("-name sandbox-SID -pidfile /run/other/pid -chardev socket,id=c,path=/x/SID/vhost.sock
    -chardev socket,id=d,path=SID/console.sock", &[])]
fn sandbox_and_its_directory_are_in_the_arguments(#[case] line: &str, #[case] expected: &[&str]) {
    let words = words(line);
    let arguments = Arguments::of(&words);
    assert_eq!(arguments.sandbox().as_deref(), Some(SID));
    let expected: Vec<_> =
        expected.iter().map(|path| PathBuf::from(path.replace("SID", SID))).collect();
    assert_eq!(arguments.directories(SID), expected);
    assert_eq!(arguments.second_monitor(), SecondMonitor::None);
}

#[rstest]
#[case::version("--version")]
#[case::short_version("-version")]
#[case::machines("-machine help")]
#[case::accelerators("-accel help")]
#[case::nothing("")]
#[case::name_without_value("-name")]
#[case::another_name("-name vm7")]
#[case::no_id("-name sandbox-")]
#[case::path_as_id("-name sandbox-../../etc")]
#[case::separator("-name sandbox-a/b")]
#[case::comma("-name sandbox-a,,b")]
#[case::later_name("-name sandbox-SID -name vm7")]
#[case::in_the_kernel_command_line("-append name=sandbox-SID")]
fn other_programs_than_sandboxes_are_left_alone(#[case] line: &str) {
    let words = words(line);
    assert_eq!(Arguments::of(&words).sandbox(), None);
}

#[test]
fn an_id_that_is_no_text_is_left_alone() {
    let name = OsString::from_vec(b"sandbox-a\xff".to_vec());
    assert_eq!(Arguments::of(&["-name".into(), name]).sandbox(), None);
}

#[rstest]
#[case::go_debug_mode(
    "-name sandbox-SID -qmp unix:path=/run/vc/vm/SID/extra-monitor.sock,server=on,wait=off",
    SecondMonitor::Qmp
)]
#[case::pretty(
    "-qmp-pretty unix:path=/run/vc/vm/SID/extra-monitor.sock,server=on",
    SecondMonitor::Qmp
)]
#[case::human(
    "-monitor unix:path=/run/vc/vm/SID/extra-monitor.sock,server=on",
    SecondMonitor::Other
)]
#[case::console("-chardev socket,id=c,path=/a/extra-monitor.sock", SecondMonitor::Other)]
#[case::ours("-chardev socket,id=ecr-monitor,fd=64,server=on,wait=off", SecondMonitor::Qmp)]
#[case::rust_debug("-monitor unix:path=debug-monitor.sock,server=on,wait=off", SecondMonitor::None)]
fn a_second_monitor_is_seen(#[case] line: &str, #[case] expected: SecondMonitor) {
    let words = words(line);
    assert_eq!(Arguments::of(&words).second_monitor(), expected);
}
