//! The part of Kata Containers' agent protocol (ttrpc, package `grpc`) that the harness and the
//! reference agent speak.
//!
//! The messages and field numbers are those of
//! `src/libs/protocols/protos/{agent,health,oci}.proto` in Kata Containers 4.1. Only the parts that
//! are used here are declared: protobuf ignores unknown fields in both directions.

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes,
    reason = "generated; the proto file documents it, and the triggered lints depend on the generator"
)]
mod protocol {
    include!(concat!(env!("OUT_DIR"), "/protocol.rs"));
}

pub use protocol::{agent, agent_ttrpc};
