//! Boots real QEMU VMs and tests block-volume hot-plug end to end.
//!
//! # The first test, in five minutes
//!
//! Once, on a Debian machine with Rust, as root (no KVM is needed): `ci/setup --test`, then
//! `ci/build`. Then a test is a function in a file of `vm-harness/tests/e2e`, which `main.rs` there
//! names. This one is `first_test.rs`; what you read is the file that runs:
//!
//! ```ignore
#![doc = include_str!("../tests/e2e/first_test.rs")]
//! ```
//!
//! Run it: `just e2e first_test` (a boot takes two to five seconds without KVM, and less than one with it). Break it, by
//! another path in one of its lines, and read what you get: the assertion, the console's last lines, QEMU's messages, and the two commands that
//! start the same VM by hand.
//!
//! Helpers panic with what happened; only what may fail in a test that goes well returns a `Result`. Nothing is left behind: dropping
//! the sandbox ends QEMU and its helpers. A wait for a guest that dies ends at once, and a guest whose kernel reported a fault fails
//! a test that passed.
//!
//! # What to vary
//!
//! | to have | write |
//! |---|---|
//! | another guest | `Sandbox::boot(&Machine { cgroup: Cgroup::V1, scan: Scan::Async, ..Machine::default() })` |
//! | a container with a device filter | `sandbox.start_container_with(&ContainerOptions { device_filter: DeviceFilter::Bpf, ..Default::default() })` |
//! | a directory of the host in the guest | [`Machine::share`] and [`Environment::generic_kernel`] |
//! | a block device of the host | [`Volume::loop_device`] |
//! | another call | `sandbox.ecr_runtime().args(["block-volume", "list", …]).run()`, see [`EcrRuntime`] and [`Finished`] |
//! | QEMU late, silent or gone | [`QmpProxy::start_with`](QmpProxy) and `--qmp`: `Rule::on(reply_to("device_add"), Fault::Cut)` |
//! | the agent so | [`AgentProxy`] and `--agent` |
//! | an agent with the plugin on a port of its own | [`Environment::plugin_port`](field@Environment::plugin_port) and [`Sandbox::boot_in`]; [`Sandbox::plugin_url`] is for `--agent` |
//! | a step that fails in the guest | the image `fault` ([`Sandbox::boot_image`]) and `/run/ecr-fault` |
//! | a step that fails on the host | [`Sandbox::ecr_runtime_with_faults`] |
//! | a look at the guest beside its agent | [`Sandbox::observer`] |
//! | a look at it by hand | `vm-harness boot`, which says what to type next; `console`, `logs`, `exec -it` |
//!
//! The machine's part (accelerator, QEMU, agent, kernel, time) is told by variables: [`Environment`].
//!
//! # Layout
//!
//! [`Machine`] is QEMU's command line, [`Guest`] the running machine, [`Agent`] and [`Container`] speak Kata's
//! protocol, [`Observer`] looks at the guest beside the agent, [`EcrRuntime`] is the command under test, [`Snapshot`] proves
//! that nothing changed, [`QmpProxy`] and [`AgentProxy`] record the traffic of a call and disturb it.

mod accelerator;
mod agent;
mod boot;
pub mod conformance;
mod console;
mod container;
mod ecr_runtime;
mod environment;
mod error;
mod exec;
mod footprint;
mod guest;
mod held;
mod observer;
mod parts;
mod process;
mod proxy;
mod qemu;
mod run_dir;
mod sandbox;
mod saved_boot;
mod shared_directory;
mod snapshot;
mod spec;
mod terminal;
mod unplug;
mod volume;
mod vsock;

pub use accelerator::{Accelerator, Choice};
pub use agent::Agent;
pub use boot::Origin;
pub use console::{Console, printable};
pub use container::Container;
pub use ecr_runtime::{EcrRuntime, Finished, Plugged};
pub use environment::Environment;
pub use error::Error;
pub use exec::Output;
pub use footprint::Footprint;
pub use guest::{AWAITS, Guest};
pub use held::Held;
pub use observer::{Conversation, Observer, Ran};
pub use parts::Parts;
pub use process::Process;
pub use proxy::{AgentProxy, Fault, Message, QmpProxy, Rule, command, event, greeting, reply_to};
pub use qemu::{Cgroup, Machine, Scan};
pub use run_dir::RunDir;
pub use sandbox::Sandbox;
pub use shared_directory::{Protocol, SharedDirectory};
pub use snapshot::Snapshot;
pub use spec::{ContainerOptions, DeviceFilter, mount};
pub use terminal::TerminalSize;
pub use unplug::remove_from_qemu;
pub use volume::{LoopOptions, Volume, random_bytes};
