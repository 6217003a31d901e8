//! Workloads whose sandbox is one of this harness: a VM in the node, started through the wrapper,
//! at the place that Kata's Go runtime has. Its ID and that of its container are those of a pod,
//! whose own container is runc's and only sleeps.

use super::{
    super::scenario::Selection,
    containerd::{self, RuntimeClass},
    program::run as run_program,
    runner::{Failed, Runner},
    scenarios,
    sequence::Sequence,
    setup,
    workload::{CONTAINER, Inside, NAMESPACE, Workload},
};
use crate::{Engine, Image, Machine, PodOptions, Sandbox};

const RUN_DIR: &str = "/run/vc";
/// QEMU as the configuration names it, before the wrapper takes its place.
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// What the administrator configures. No pod is started with it.
const CLASS: RuntimeClass = RuntimeClass {
    name: "kata",
    shim: "/usr/bin/containerd-shim-kata-v2",
    directory: "/etc/kata-containers",
};

pub(super) async fn run(runner: &mut Runner, selection: &Selection) -> Result<(), Failed> {
    let (engine, image) = runner.scenario("the wrapper is enabled", enable()).await?;
    let start = async |engine: &Engine, name: &str| start(engine, &image, name).await;
    Sequence { runner, selection, class: None }.run(engine, start).await.map(|_| ())
}

async fn enable() -> (Engine, Image) {
    let configuration = format!("{}/configuration.toml", CLASS.directory);
    setup::write(&configuration, &format!("[hypervisor.qemu]\npath = {QEMU:?}\n"));
    containerd::configure(&[CLASS]);
    setup::enable(QEMU, &[CLASS.directory]).await;
    run_program(&["ecr-runtime", "check"]).await;
    let engine = containerd::restart().await;
    let image = containerd::import(&engine).await;
    (engine, image)
}

async fn start(engine: &Engine, image: &Image, name: &str) -> Workload {
    let options = PodOptions::named(NAMESPACE, name);
    let pod = engine.run_pod(&options, image).await;
    let pod = pod.unwrap_or_else(|error| panic!("no pod: {}", error.chain()));
    let container = pod.start_container(CONTAINER).await;
    let container = container.unwrap_or_else(|error| panic!("no container: {}", error.chain()));
    let machine =
        Machine { native_vsock: true, run_dir: Some(RUN_DIR.into()), ..Machine::default() };
    let sandbox = Sandbox::boot_as(pod.id(), &machine).await;
    let sandbox = sandbox.unwrap_or_else(|error| panic!("no sandbox: {}", error.chain()));
    assert!(sandbox.agent_url().starts_with("vsock://"), "{}", sandbox.agent_url());
    let inside = sandbox.start_container_as(container.id()).await;
    let name = format!("{NAMESPACE}/{name}");
    let inside = Inside::Harness(Box::new((sandbox, inside)));
    let workload = Workload { pod, container, name, inside };
    scenarios::sandbox_is_ready(&workload).await;
    workload
}
