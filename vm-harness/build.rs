//! Generates the messages of the CRI that the harness uses, in pure Rust: no protoc.

/// The messages of `ecr-runtime`, which it uses, too.
const CRI: &str = "../host-trigger/proto";

fn main() {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed={CRI}");
    protobuf_codegen::Codegen::new()
        .pure()
        .includes(["proto", CRI])
        .input("proto/pods.proto")
        .cargo_out_dir("cri")
        .run_from_script();
}
