//! containerd of the node: its configuration, and its client.

use std::{fs, path::Path, time::Duration};

use super::{program::run, setup::write};
use crate::{Accelerator, Engine, Image};

const SOCKET: &str = "/run/containerd/containerd.sock";
const CONFIGURATION: &str = "/etc/containerd/config.toml";
/// The only image: of the pause container and of all others.
const IMAGE: &str = "localhost/harness:pause";
/// How long a call may take with KVM: Kata's sandbox boots in one.
const CALL: Duration = Duration::from_secs(60);

/// How long containerd lets a runtime remove what a shim has left that has died; its own value.
const CLEAN_UP: Duration = Duration::from_secs(5);

/// A runtime class of Kata's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RuntimeClass {
    pub(super) name: &'static str,
    pub(super) shim: &'static str,
    /// The directory with its `configuration.toml`.
    pub(super) directory: &'static str,
}

/// Writes the configuration: these runtime classes beside the default one, which a list replaces.
pub(super) fn configure(classes: &[RuntimeClass]) {
    write(CONFIGURATION, &configuration(classes, time_scale()));
}

fn configuration(classes: &[RuntimeClass], scale: u32) -> String {
    let clean_up = (CLEAN_UP * scale).as_secs();
    let mut text = format!(
        "version = 2\n[timeouts]\n\"io.containerd.timeout.shim.cleanup\" = \"{clean_up}s\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = {IMAGE:?}\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n\
         runtime_type = \"io.containerd.runc.v2\"\n"
    );
    for RuntimeClass { name, shim, directory } in classes {
        let table = format!("plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.{name}");
        text += &format!(
            "[{table}]\nruntime_type = \"io.containerd.{name}.v2\"\nruntime_path = {shim:?}\n\
             privileged_without_host_devices = true\n\
             [{table}.options]\nConfigPath = \"{directory}/configuration.toml\"\n"
        );
    }
    text
}

/// Restarts it, and connects.
///
/// # Panics
/// It does not start or reply.
pub(super) async fn restart() -> Engine {
    run(&["systemctl", "restart", "containerd"]).await;
    let engine = Engine::connect(Path::new(SOCKET), scaled(CALL)).await;
    engine.unwrap_or_else(|error| panic!("no containerd: {}", error.chain()))
}

/// Returns the image of all containers, which containerd has now.
///
/// # Panics
/// It cannot be imported.
pub(super) async fn import(engine: &Engine) -> Image {
    let busybox = fs::read("/bin/busybox").expect("the node has busybox");
    let image = Image::new(IMAGE, busybox);
    let imported = engine.import(&image).await;
    imported.unwrap_or_else(|error| panic!("no image: {}", error.chain()));
    image
}

/// Scales a time limit for this node; `limit` is the value for KVM.
pub(super) fn scaled(limit: Duration) -> Duration {
    limit * time_scale()
}

/// Returns the factor on time limits in this node.
pub(super) fn time_scale() -> u32 {
    let scale = Accelerator::choose().and_then(|choice| choice.accelerator.configured_time_scale());
    scale.unwrap_or_else(|error| panic!("{}", error.chain()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean_up_of_a_dead_shim_has_the_time_of_the_node() {
        let class = RuntimeClass { name: "kata-qemu", shim: "/shim", directory: "/etc/kata" };
        let text = configuration(&[class], 16);
        let timeouts = "[timeouts]\n\"io.containerd.timeout.shim.cleanup\" = \"80s\"\n";
        assert!(
            text.contains(timeouts) && text.contains("containerd.runtimes.kata-qemu"),
            "{text}"
        );
    }
}
