//! A container engine with the Container Runtime Interface
//! ([CRI](https://github.com/kubernetes/cri-api/blob/master/pkg/apis/runtime/v1/api.proto)): a real
//! containerd of a Debian suite, and pods in it, as kubelet makes them.
//!
//! ```no_run
//! # use vm_harness::{Containerd, Environment, PodOptions};
//! # async fn example() -> Result<(), vm_harness::Error> {
//! let containerd = Containerd::start(&Environment::from_variables(), "bookworm").await?;
//! let pod = containerd.run_pod(&PodOptions::named("shop", "db-0")).await?;
//! let container = pod.start_container("app").await?;
//! println!("{} in {} at {}", container.id(), pod.id(), containerd.socket().display());
//! # Ok(())
//! # }
//! ```
//!
//! The containers are crun's, on this host, and sleep. A [`Sandbox`](crate::Sandbox) can have the
//! ID of a pod's sandbox and a container of the guest that of a pod's container
//! ([`Sandbox::boot_as`](crate::Sandbox::boot_as),
//! [`Sandbox::start_container_as`](crate::Sandbox::start_container_as)): for who asks the engine,
//! the pod is then one of Kata's.

mod client;
mod containerd;
mod engine;
mod image;
mod pod;
mod transcript;
mod proto {
    //! The messages of `ecr-runtime`, which list pods, and those that make them, generated at build
    //! time from `proto/pods.proto`.
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::allow_attributes,
        reason = "generated; which lints apply depends on the generator"
    )]

    pub(super) use host_trigger::cri::proto::cri;

    include!(concat!(env!("OUT_DIR"), "/cri/mod.rs"));
}

pub use containerd::Containerd;
pub use engine::Engine;
pub use image::Image;
pub use pod::{Pod, PodContainer, PodOptions};
pub use transcript::EngineTranscript;
