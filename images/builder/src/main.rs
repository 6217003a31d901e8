//! `image-builder`: builds a guest image from a kernel package and the guest's programs.

use std::{
    io,
    path::{self, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use image_builder::{
    contents::Programs,
    image::{self, INITRAMFS, Recipe, VMLINUX},
};

/// Builds a guest image: an uncompressed kernel and an initramfs.
#[derive(Clone, Parser)]
#[command(version)]
struct Arguments {
    /// Directory of an unpacked kernel package, with boot/vmlinuz-* and lib/modules
    #[arg(long, value_parser = absolute, value_name = "DIR")]
    kernel: PathBuf,
    /// The agent that becomes PID 1; shared libraries that it needs are copied from this machine
    #[arg(long, value_parser = absolute, value_name = "PATH")]
    agent: PathBuf,
    /// The guest's init (static)
    #[arg(long, value_parser = absolute, value_name = "PATH")]
    init: PathBuf,
    /// The harness's observer (static)
    #[arg(long, value_parser = absolute, value_name = "PATH")]
    observer: PathBuf,
    /// A program that connects to an agent, installed at /usr/bin/agent-probe (static)
    #[arg(long, value_parser = absolute, value_name = "PATH")]
    probe: Option<PathBuf>,
    /// The container runtime
    #[arg(long, value_parser = absolute, value_name = "PATH", default_value = "/usr/bin/crun")]
    crun: PathBuf,
    /// Busybox (static)
    #[arg(long, value_parser = absolute, value_name = "PATH", default_value = "/bin/busybox")]
    busybox: PathBuf,
    /// Additional program, installed in /usr/sbin with its libraries; may be repeated
    #[arg(long, value_parser = absolute, value_name = "PATH")]
    tool: Vec<PathBuf>,
    /// Directory of unpacked packages, whose libraries take precedence over this machine's; may be
    /// repeated
    #[arg(long, value_parser = absolute, value_name = "DIR")]
    tree: Vec<PathBuf>,
    /// Directory whose files are copied over the guest's root; may be repeated
    #[arg(long, value_parser = absolute, value_name = "DIR")]
    extra: Vec<PathBuf>,
    /// Directory for the image
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// The recipe is also read by programs that run in another directory.
fn absolute(path: &str) -> io::Result<PathBuf> {
    path::absolute(path)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let out = arguments.out.display();
    match image::build(&recipe(&arguments), &arguments.out) {
        Ok(true) => eprintln!("image-builder: wrote {out} ({VMLINUX}, {INITRAMFS})"),
        Ok(false) => eprintln!("image-builder: {out} is up to date"),
        Err(error) => {
            eprintln!("image-builder: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn recipe(arguments: &Arguments) -> Recipe {
    let Arguments {
        kernel,
        agent,
        init,
        observer,
        probe,
        crun,
        busybox,
        tool,
        tree,
        extra,
        out: _,
    } = arguments.clone();
    let programs = Programs {
        init,
        agent,
        observer,
        probe,
        crun,
        busybox,
        tools: tool,
        trees: tree,
        extra,
        files: Vec::new(),
    };
    Recipe { kernel, programs }
}
