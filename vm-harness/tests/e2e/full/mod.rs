//! The level `full`: what takes minutes and prints tables and figures. `just full` runs it,
//! `ci/test` leaves it out.

mod conformance;
mod flood;
mod growth;
mod host_shares;
mod load;
mod swaps;
mod tables;

use vm_harness::{Container, EcrRuntime, Machine, Sandbox, Volume};

use super::boot;

/// A guest that has memory for some hundred disks.
async fn large_sandbox() -> Sandbox {
    boot(&Machine { memory: 768, ..Machine::default() }).await
}

fn small_volumes(count: usize) -> Vec<Volume> {
    (0..count).map(|_| Volume::image(64 << 10)).collect()
}

fn path(index: usize) -> String {
    format!("/dev/volume{index}")
}

/// One `hot-plug` of volumes that stand at their index in a list.
fn plug_command<'a>(
    sandbox: &Sandbox,
    container: &Container,
    volumes: impl Iterator<Item = (usize, &'a Volume)>,
) -> EcrRuntime {
    let volumes: Vec<_> = volumes.map(|(index, volume)| (volume, path(index))).collect();
    let volumes: Vec<_> = volumes.iter().map(|(volume, path)| (*volume, path.as_str())).collect();
    // Some of these calls have a lot to do, and emulation is slow.
    sandbox.hot_plug_command(container, &volumes).args(["--timeout", "10m"])
}

/// Plugs all of a list, 32 in a call.
async fn plug_in_batches(sandbox: &Sandbox, container: &Container, volumes: &[Volume]) {
    for (batch, part) in volumes.chunks(32).enumerate() {
        let part = part.iter().enumerate().map(|(index, volume)| (batch * 32 + index, volume));
        plug_command(sandbox, container, part).run().await.succeeded(sandbox.guest());
    }
}
