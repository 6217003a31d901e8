//! End-to-end tests with real VMs, real containers and real disks. One binary, one file per
//! subject.

mod address;
mod agent_faults;
mod attach;
mod audit;
mod bad_input;
mod bench;
mod boot_snapshot;
mod check;
mod conformance;
mod container_gone;
mod detach;
mod detach_goes_on;
mod device_filter;
mod discard;
mod dry_run;
mod file_systems;
mod first_test;
mod full;
mod guest_faults;
mod guest_kernel;
mod guest_races;
mod harness;
mod holder_scan;
mod holders;
mod host_failures;
mod hostile_container;
mod hostile_cycles;
mod hot_unplug;
mod mount_kinds;
mod native_vsock;
mod package;
mod paused;
mod plug_conversation;
mod pods;
mod qmp_faults;
mod reference_agent;
mod references;
mod repair;
mod resize;
mod second_signal;
mod shared;
mod shipped;
mod source_gone;
mod stats;
mod swapped_parent;
mod terminal;
mod throttle;
mod unplug_stream;
mod unprivileged_qemu;
mod user_namespace;
mod vetting;
mod without_guest;
mod workflow;

use std::{
    process::Command,
    time::{Duration, Instant},
};

use rstest::fixture;
use vm_harness::{
    Container, ContainerOptions, DeviceFilter, EcrRuntime, Finished, Machine, Plugged, Sandbox,
    Volume,
};

pub(crate) const MIB: u64 = 1 << 20;

/// A booted sandbox with the default machine: cgroup v2, `scsi_mod.scan=none`.
#[fixture]
async fn sandbox() -> Sandbox {
    boot(&Machine::default()).await
}

/// A booted sandbox with the default machine, from the image that has the plugin's fault points.
#[fixture]
async fn sandbox_with_faults() -> Sandbox {
    boot_with_faults(&Machine::default()).await
}

pub(crate) async fn boot(machine: &Machine) -> Sandbox {
    Sandbox::boot(machine).await.unwrap_or_else(|error| panic!("no sandbox: {}", error.chain()))
}

pub(crate) async fn boot_with_faults(machine: &Machine) -> Sandbox {
    Sandbox::boot_image("fault", machine)
        .await
        .unwrap_or_else(|error| panic!("no sandbox: {}", error.chain()))
}

/// Sets the plugin's fault points in the guest, one `name=action` per line.
pub(crate) async fn set_guest_faults(sandbox: &Sandbox, faults: &str) {
    // At a fault point where it waits, the plugin reads the file again and again. It must never
    // read an empty file that is still to be written.
    sandbox.observer().write("/run/ecr-fault.new", faults).await.expect("the guest has a /run");
    sandbox.observer().shell("mv /run/ecr-fault.new /run/ecr-fault").await;
}

/// Waits until the guest's console shows `text`. The plugin prints a line there at a fault point.
pub(crate) async fn wait_for_console(sandbox: &Sandbox, text: &str) {
    let deadline = Instant::now() + sandbox.guest().scaled(Duration::from_secs(10));
    while !sandbox.guest().console().text().contains(text) {
        assert!(Instant::now() < deadline, "the console never showed {text:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until the plugin reaches this fault point. The first `seen` bytes of the console are
/// ignored.
pub(crate) async fn wait_for_fault_point(sandbox: &Sandbox, seen: usize, point: &str) {
    let point = format!("fault point {point}");
    let arrived = async {
        while !sandbox
            .guest()
            .console()
            .text()
            .get(seen..)
            .is_some_and(|text| text.contains(&point))
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    sandbox.guest().wait_for(&point, Duration::from_secs(10), arrived).await.unwrap();
}

/// Runs `call`, and runs `script` in the container when the plugin is at this fault point. The
/// plugin then continues.
pub(crate) async fn at_fault_point(
    sandbox: &Sandbox,
    container: &Container,
    call: EcrRuntime,
    point: &str,
    script: &str,
) -> Finished {
    set_guest_faults(sandbox, &format!("{point}=wait\n")).await;
    let seen = sandbox.guest().console().text().len();
    // The timeout of the call also covers the time that the script takes.
    let limit = format!("{}s", sandbox.guest().scaled(Duration::from_secs(30)).as_secs());
    let call = call.args(["--timeout", &limit]).start();
    wait_for_fault_point(sandbox, seen, point).await;
    container.exec(&["sh", "-c", script]).await;
    set_guest_faults(sandbox, "").await;
    Finished::new(&call.wait_with_output().await.unwrap(), Duration::ZERO)
}

/// A container whose node is made in its own file system, by mknod, because a device filter
/// protects the device number: the container can remove, link and rename the node.
pub(crate) fn guarded() -> ContainerOptions {
    ContainerOptions { device_filter: DeviceFilter::Bpf, ..ContainerOptions::default() }
}

/// Returns an image with an ext4 file system.
pub(crate) fn ext4_image(size: u64) -> Volume {
    let volume = Volume::image(size);
    make_ext4(&volume);
    volume
}

/// Creates an ext4 file system on the volume.
pub(crate) fn make_ext4(volume: &Volume) {
    let made = Command::new("mkfs.ext4").args(["-q", "-F", volume.name()]).status().unwrap();
    assert!(made.success(), "mkfs.ext4 failed");
}

/// Mounts the volume's ext4 file system at `/mnt` of the guest itself, outside the container.
pub(crate) async fn mount_in_guest(sandbox: &Sandbox, plugged: &Plugged) {
    let device = format!("/dev/{}", plugged.guest_device());
    sandbox.observer().shell(&format!("mkdir -p /mnt && mount -t ext4 {device} /mnt")).await;
}
