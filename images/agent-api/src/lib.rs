//! The part of Kata Containers' agent protocol (ttrpc, package `grpc`) that the harness and the
//! reference agent speak.
//!
//! The messages and numbers are those of `src/libs/protocols/protos/{agent,health,oci}.proto` in
//! Kata Containers 4.1, as far as they are used here; unknown fields are ignored in both
//! directions, as protobuf does.

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes,
    reason = "generated; the proto file documents it, and which lints it trips depends on the generator"
)]
mod protocol {
    include!(concat!(env!("OUT_DIR"), "/protocol.rs"));
}

pub use protocol::{agent, agent_ttrpc};
