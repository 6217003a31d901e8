//! Generates the Rust code of the protocol, in pure Rust: no protoc.

use std::{env, error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let out = env::var("OUT_DIR")?;
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .inputs(["proto/block_volume.proto"])
        .include("proto")
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize { async_all: true, ..Default::default() })
        .rust_protobuf_customize(ttrpc_codegen::ProtobufCustomize::default().gen_mod_rs(false))
        .run()?;
    fs::write(
        Path::new(&out).join("api.rs"),
        "pub mod block_volume;\npub mod block_volume_ttrpc;\n",
    )?;
    Ok(())
}
