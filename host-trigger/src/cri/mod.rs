//! The Container Runtime Interface of containerd and CRI-O
//! ([its API](https://github.com/kubernetes/cri-api/blob/master/pkg/apis/runtime/v1/api.proto)):
//! which sandbox a pod has, and which containers. It is asked if a pod is named, and never
//! otherwise. Nothing is sent but two queries.

mod client;
mod endpoint;
mod engine;
mod grpc;
pub(crate) mod lookup;
mod query;
pub mod proto {
    //! The messages, generated at build time from `proto/cri.proto`.
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::allow_attributes,
        reason = "generated; which lints apply depends on the generator"
    )]

    include!(concat!(env!("OUT_DIR"), "/cri/mod.rs"));
}

pub use endpoint::Endpoint;
pub(crate) use engine::Engine;
pub use engine::PodSandbox;
pub(crate) use lookup::Wanted;
pub use query::NamedContainers;
