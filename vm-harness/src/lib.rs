//! Boots real QEMU VMs and tests hot-plug of block volumes end to end.
//!
//! # The first test
//!
//! Once, on a Debian machine with Rust, as root (KVM is not needed): `ci/setup --test`, then
//! `ci/build`. After that, a test is a function in a file of `vm-harness/tests/e2e`, which
//! `main.rs` there declares as a module. This is `first_test.rs`, the file that runs:
//!
//! ```ignore
#![doc = include_str!("../tests/e2e/first_test.rs")]
//! ```
//!
//! Run it: `just e2e first_test`. A boot takes two to five seconds without KVM, and less than one
//! with it. Then break it, by another path in one of its lines, and read the failure: the
//! assertion, the last lines of the console, the messages of QEMU, and the two commands that start
//! the same VM by hand.
//!
//! Helpers panic with a message that says what happened. Only a function whose failure a test may
//! expect returns a `Result`. Dropping the sandbox ends QEMU and its helper processes, and removes
//! all files. A wait for a guest that dies ends immediately. A test that passed fails if the
//! guest's kernel reported a fault.
//!
//! # What a test can vary
//!
//! | to have | write |
//! |---|---|
//! | another guest | `Sandbox::boot(&Machine { cgroup: Cgroup::V1, scan: Scan::Async, ..Machine::default() })` |
//! | a QEMU that `ecr-qemu` did not start | [`Machine::wrapped`] |
//! | a container with a device filter | `sandbox.start_container_with(&ContainerOptions { device_filter: DeviceFilter::Bpf, ..Default::default() })` |
//! | a directory of the host in the guest | [`Machine::share`] and [`Environment::generic_kernel`] |
//! | a block device of the host | [`Volume::loop_device`] |
//! | another command | `sandbox.ecr_runtime().args(["block-volume", "list", …]).run()`, see [`EcrRuntime`] and [`Finished`] |
//! | a QEMU that answers late, never, or not any more | [`QmpProxy::start_with`](QmpProxy) and `--qmp`: `Rule::on(reply_to("device_add"), Fault::Cut)` |
//! | the same of the agent | [`AgentProxy`] and `--agent` |
//! | an agent that serves the plugin on a separate port | [`Environment::plugin_port`](field@Environment::plugin_port) and [`Sandbox::boot_in`]; [`Sandbox::plugin_url`] is the value for `--agent` |
//! | a step that fails in the guest | the image `fault` ([`Sandbox::boot_image`]) and `/run/ecr-fault` |
//! | a step that fails on the host | [`Sandbox::ecr_runtime_with_faults`] |
//! | pods by name | [`Containerd::start`], [`Sandbox::boot_as`] and [`Sandbox::start_container_as`] |
//! | the state of the guest without its agent | [`Sandbox::observer`] |
//! | a sandbox to try things by hand | `vm-harness boot`, which prints the next commands; `console`, `logs`, `exec -it` |
//!
//! The accelerator, QEMU, the agent, the kernel and the factor on time limits are set by
//! environment variables: [`Environment`].
//!
//! # Layout
//!
//! | directory or file | what | types |
//! |---|---|---|
//! | `vm` | QEMU and the guest: command line, boot and restore, console, the agent's and the observer's clients, the run directory | [`Machine`], [`Guest`], [`Agent`], [`Observer`], [`RunDir`] |
//! | `container` | a container: its OCI specification, processes and terminals in it | [`Container`], [`ContainerOptions`] |
//! | `sandbox` | the fixture of a test, and the command under test | [`Sandbox`], [`EcrRuntime`], [`Snapshot`], [`Footprint`] |
//! | `cri` | a real containerd with CRI, and pods in it | [`Containerd`], [`Pod`], [`PodContainer`] |
//! | `proxy` | recording proxies that disturb the traffic of a command | [`QmpProxy`], [`AgentProxy`], [`Rule`] |
//! | [`node`] | a Debian node as a VM, and the suite that runs in it | [`node::Node`] |
//! | [`conformance`] | the suite for an agent | [`conformance::Conformance`] |
//! | `command` | the subcommands of the program `vm-harness` (not a part of the library) | |
//! | `environment`, `overrides` | paths and settings of this build; what a caller changes in the guest's image | [`Environment`], [`Overrides`] |
//! | `volume`, `file_system`, `process`, `procfs`, `error` | volumes of the host and the file systems on them, its processes and what `/proc` reports of them, errors | [`Volume`], [`FileSystem`], [`Process`], [`ProcessStat`], [`Error`] |
//!
//! Uses go in one direction: `vm` does not use containers or sandboxes, `container` uses `vm`,
//! `sandbox` uses both, and the proxies and the conformance suite use the sandbox.

pub mod conformance;
mod container;
mod cri;
mod environment;
mod error;
mod file_system;
pub mod node;
mod overrides;
mod panic_capture;
mod process;
mod procfs;
mod proxy;
mod sandbox;
mod vm;
mod volume;

pub use container::{
    Container,
    exec::Output,
    spec::{ContainerOptions, DeviceFilter, mount},
    terminal::TerminalSize,
};
pub use cri::{Containerd, Engine, EngineTranscript, Image, Pod, PodContainer, PodOptions};
pub use environment::Environment;
pub use error::Error;
pub use file_system::FileSystem;
pub use overrides::Overrides;
pub use process::Process;
pub use procfs::ProcessStat;
pub use proxy::{AgentProxy, Fault, Message, QmpProxy, Rule, command, event, greeting, reply_to};
pub use sandbox::{
    Sandbox,
    agent_snapshot::AgentSnapshot,
    ecr_runtime::{EcrRuntime, Finished, Plugged},
    footprint::Footprint,
    plug_client::PlugConversation,
    plugin_client::remove_from_qemu,
    snapshot::Snapshot,
};
pub use vm::{
    accelerator::{Accelerator, AcceleratorChoice},
    agent::Agent,
    console::{Console, printable},
    guest::{Guest, WAIT_EVENTS},
    libvirt::virsh::Virsh,
    machine::{Cgroup, Machine, MachineType, Scan},
    observer::{CommandOutput, Observer, ObserverConnection},
    origin::Origin,
    run_dir::RunDir,
    running_vm::RunningVm,
    shared_directory::{Protocol, SharedDirectory},
};
pub use volume::{LoopOptions, Volume, random_bytes};
