//! The conformance suite: checks that an agent, on a kernel and a QEMU, plugs volumes as the
//! contract of the plugin requires.
//!
//! The host's side is the real `ecr-runtime`. The guest's side is a VM that boots the agent as PID
//! 1, with containers that are made through Kata's own protocol, as its shims do. A [`Check`] is a
//! small asynchronous function that panics if something is wrong, as a test does; the panic is its
//! [`Verdict`]. All checks of a [`Mode`] share one VM, which is booted again after a failure.
//!
//! ```no_run
//! # async fn suite() {
//! use vm_harness::{Environment, conformance::Conformance};
//!
//! let mut environment = Environment::from_variables();
//! environment.overrides.agent = Some("/path/to/kata-agent".into());
//! let report = Conformance::new(environment).run(&mut |_| ()).await;
//! assert_eq!(report.counts().failed, 0);
//! # }
//! ```

mod check;
mod checks;
mod explanation;
mod fixture;
mod guest_info;
mod junit;
mod mode;
mod probe;
mod raw_client;
mod report;
mod runner;
mod subject;
mod suite;

pub use check::{Check, Group};
pub use checks::GROUPS;
pub use explanation::Explanation;
pub use fixture::Fixture;
pub use guest_info::{AgentKind, GuestInfo, Plugin};
pub use mode::Mode;
pub use report::{Counts, Event, ModeReport, Outcome, Report, Verdict};
pub use subject::Subject;
pub use suite::Conformance;
