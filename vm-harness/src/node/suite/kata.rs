//! Workloads of Kata's: its release in `/opt/kata`, as its archive lays it out, with the Go
//! runtime, the Rust runtime, or both. The agent in its guest image must contain the plugin.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use super::{
    super::scenario::Selection,
    containerd::{self, RuntimeClass, time_scale},
    program::run as run_program,
    runner::{Failed, Runner},
    scenarios,
    sequence::Sequence,
    setup,
    workload::{CONTAINER, Inside, NAMESPACE, Workload},
};
use crate::{Accelerator, Engine, Image, PodOptions};

/// The runtimes: their class, and the configuration that the release has for it.
const RUNTIMES: [(RuntimeClass, &str); 2] = [
    (
        RuntimeClass {
            name: "kata-qemu",
            shim: "/opt/kata/bin/containerd-shim-kata-v2",
            directory: "/etc/kata-containers/kata-qemu",
        },
        "/opt/kata/share/defaults/kata-containers/configuration-qemu.toml",
    ),
    (
        RuntimeClass {
            name: "kata-qemu-runtime-rs",
            shim: "/opt/kata/runtime-rs/bin/containerd-shim-kata-v2",
            directory: "/etc/kata-containers/kata-qemu-runtime-rs",
        },
        "/opt/kata/share/defaults/kata-containers/runtime-rs/configuration-qemu-runtime-rs.toml",
    ),
];
/// The release's QEMU.
const QEMU: &str = "/opt/kata/bin/qemu-system-x86_64";
/// Started in its place where no guest has KVM: Debian's QEMU, since the release's cannot emulate.
const QEMU_WITHOUT_KVM: &str = "/usr/local/bin/qemu-without-kvm";
const WITHOUT_KVM: &str = "#!/bin/bash\nwords=()\nfor word; do\n\
    word=${word/accel=kvm/accel=tcg}\n\
    if [[ $word == host || $word == host,* ]]; then word=Nehalem; fi\n\
    words+=(\"$word\")\ndone\nexec /usr/bin/qemu-system-x86_64 \"${words[@]}\"\n";
/// How long the runtimes wait for the agent: until it listens (Go in seconds, Rust in milliseconds;
/// Kata's values are a multiple of a boot with KVM), and until a container is there. Each with the
/// least value before it is multiplied: that of Go, since Rust's are too short for emulated guests.
const LIMITS: [(&str, u64); 3] =
    [("dial_timeout", 45), ("reconnect_timeout_ms", 45_000), ("create_container_timeout", 60)];

/// The runtime classes of the release in this node.
pub(super) fn runtime_classes() -> Vec<RuntimeClass> {
    let found = RUNTIMES.into_iter().filter(|(class, _)| Path::new(class.shim).exists());
    found.map(|(class, _)| class).collect()
}

pub(super) async fn run(
    runner: &mut Runner,
    selection: &Selection,
    classes: &[RuntimeClass],
) -> Result<(), Failed> {
    let enabled = enable(classes);
    let (mut engine, image) = runner.scenario("the wrapper is enabled", enabled).await?;
    for class in classes {
        let start =
            async |engine: &Engine, name: &str| start(engine, &image, class.name, name).await;
        engine = Sequence { runner, selection, class: Some(class.name) }.run(engine, start).await?;
    }
    Ok(())
}

async fn enable(classes: &[RuntimeClass]) -> (Engine, Image) {
    let choice = Accelerator::choose().unwrap_or_else(|error| panic!("{}", error.chain()));
    let without_kvm = choice.accelerator == Accelerator::Tcg;
    let qemu = if without_kvm { QEMU_WITHOUT_KVM } else { QEMU };
    if without_kvm {
        setup::write(QEMU_WITHOUT_KVM, WITHOUT_KVM);
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(QEMU_WITHOUT_KVM, executable).expect("the script's mode can be set");
        // The Go runtime wants the device to be there, and does not open it.
        run_program(&["sh", "-c", "[ -e /dev/kvm ] || mknod /dev/kvm c 10 232"]).await;
    }
    run_program(&["modprobe", "--all", "vhost_net", "vhost_vsock"]).await;
    for (class, configuration) in RUNTIMES.iter().filter(|(class, _)| classes.contains(class)) {
        let text = fs::read_to_string(configuration)
            .unwrap_or_else(|error| panic!("{configuration}: {error}"));
        let mut text = with_scaled_limits(&text.replace(QEMU, qemu), time_scale());
        if without_kvm {
            text = with_zeroed_pages(&text);
        }
        // A copy is the administrator's own.
        setup::write(&format!("{}/configuration.toml", class.directory), &text);
    }
    containerd::configure(classes);
    let directories: Vec<_> = classes.iter().map(|class| class.directory).collect();
    setup::enable(qemu, &directories).await;
    let engine = containerd::restart().await;
    let image = containerd::import(&engine).await;
    (engine, image)
}

/// Returns a configuration of Kata's with its time limits multiplied.
fn with_scaled_limits(text: &str, scale: u32) -> String {
    let scaled = |line: &str| -> Option<String> {
        let (key, value) = line.split_once('=')?;
        let limit: u64 = value.trim().parse().ok()?;
        let (key, least) = LIMITS.into_iter().find(|(name, _)| *name == key.trim())?;
        Some(format!("{key} = {}", limit.max(least) * u64::from(scale)))
    };
    text.lines().map(|line| scaled(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

/// Returns a configuration of Kata's whose guests zero each page that they allocate.
///
/// virtiofsd writes files into the guest's memory by itself. A QEMU that emulates does not notice
/// that, and executes what it has translated of the page's earlier contents: a program dies of
/// instructions that are not its own. It notices zeros, which the guest writes.
fn with_zeroed_pages(text: &str) -> String {
    text.replace("kernel_params = \"", "kernel_params = \"init_on_alloc=1 ")
}

async fn start(engine: &Engine, image: &Image, class: &str, name: &str) -> Workload {
    let options = PodOptions { runtime: class.to_owned(), ..PodOptions::named(NAMESPACE, name) };
    let pod = engine.run_pod(&options, image).await;
    let pod = pod.unwrap_or_else(|error| panic!("no pod: {}", error.chain()));
    let container = pod.start_container(CONTAINER).await;
    let container = container.unwrap_or_else(|error| panic!("no container: {}", error.chain()));
    let name = format!("{NAMESPACE}/{name}");
    let workload = Workload { pod, container, name, inside: Inside::Kata };
    scenarios::sandbox_is_ready(&workload).await;
    workload
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn time_limits_of_both_runtimes_are_scaled() {
        let text = "# dial_timeout = 1\ndial_timeout = 45\ndial_timeout_ms = 10\n\
            reconnect_timeout_ms=3000\ncreate_container_timeout = 90\ndefault_vcpus = 1\n";
        let scaled = "# dial_timeout = 1\ndial_timeout = 180\ndial_timeout_ms = 10\n\
            reconnect_timeout_ms = 180000\ncreate_container_timeout = 360\ndefault_vcpus = 1\n";
        assert_eq!(with_scaled_limits(text, 4), scaled);
    }

    #[test]
    fn guests_of_an_emulated_node_zero_their_pages() {
        let text = "kernel = \"/vmlinux\"\nkernel_params = \"cgroup_no_v1=all\"\n";
        let zeroed =
            "kernel = \"/vmlinux\"\nkernel_params = \"init_on_alloc=1 cgroup_no_v1=all\"\n";
        assert_eq!(with_zeroed_pages(text), zeroed);
    }

    #[test]
    fn qemu_of_an_emulated_node_gets_no_kvm() {
        let script = WITHOUT_KVM.replace("exec /usr/bin/qemu-system-x86_64", "printf '%s\\n'");
        let arguments = ["-machine", "q35,accel=kvm,nvdimm=on", "-cpu", "host,pmu=off", "-m", "1G"];
        let output = Command::new("bash").args(["-c", &script, "bash"]).args(arguments).output();
        let printed = String::from_utf8(output.unwrap().stdout).unwrap();
        let expected = ["-machine", "q35,accel=tcg,nvdimm=on", "-cpu", "Nehalem", "-m", "1G"];
        assert_eq!(printed.lines().collect::<Vec<_>>(), expected);
    }
}
