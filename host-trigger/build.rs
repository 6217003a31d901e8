//! Generates the messages of the CRI that are used, in pure Rust: no protoc.

fn main() {
    println!("cargo::rerun-if-changed=proto");
    protobuf_codegen::Codegen::new()
        .pure()
        .include("proto")
        .input("proto/cri.proto")
        .cargo_out_dir("cri")
        .run_from_script();
}
