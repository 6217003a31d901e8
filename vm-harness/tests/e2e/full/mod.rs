//! The level `full`: tests that take minutes and print tables and figures. `just full` runs them,
//! `ci/test` does not.

mod conformance;
mod descriptor_flood;
mod file_systems;
mod hostile_cycles;
mod load;
mod node;
mod node_kinds;
mod pods;
mod references;
mod scaling;
mod shared_directories;
mod swapped_parent;
mod tables;
mod udev;
mod uevent_flood;

use vm_harness::{Container, EcrRuntime, Machine, Sandbox, Volume};

use super::boot;

/// Boots a guest with memory for several hundred disks.
async fn large_sandbox() -> Sandbox {
    boot(&Machine { memory: 768, ..Machine::default() }).await
}

fn small_volumes(count: usize) -> Vec<Volume> {
    (0..count).map(|_| Volume::image(64 << 10)).collect()
}

fn path(index: usize) -> String {
    format!("/dev/volume{index}")
}

/// One `hot-plug` command for several volumes, each with its index in a list.
fn plug_command<'a>(
    sandbox: &Sandbox,
    container: &Container,
    volumes: impl Iterator<Item = (usize, &'a Volume)>,
) -> EcrRuntime {
    let volumes: Vec<_> = volumes.map(|(index, volume)| (volume, path(index))).collect();
    let volumes: Vec<_> = volumes.iter().map(|(volume, path)| (*volume, path.as_str())).collect();
    // Some of these calls plug many volumes, and emulation is slow.
    sandbox.hot_plug_command(container, &volumes).args(["--timeout", "10m"])
}

/// Plugs all volumes of a list, 32 per call.
async fn plug_in_batches(sandbox: &Sandbox, container: &Container, volumes: &[Volume]) {
    for (batch, part) in volumes.chunks(32).enumerate() {
        let part = part.iter().enumerate().map(|(index, volume)| (batch * 32 + index, volume));
        plug_command(sandbox, container, part).run().await.succeeded(sandbox.guest());
    }
}
