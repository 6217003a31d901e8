//! `vm-harness demo`: hot-plugs two volumes with random bytes, and prints each step.

use std::{process::ExitCode, time::Instant};

use clap::Args;
use sha2::{Digest as _, Sha256};
use vm_harness::{Container, Error, Machine, Sandbox, Volume, random_bytes};

use super::progress::step;

const SIZE: u64 = 16 << 20;

/// The demonstration has no options.
#[derive(Debug, Args)]
#[command(before_help = "Example: vm-harness demo")]
pub(crate) struct Demo {}

impl Demo {
    pub(crate) async fn run(self) -> Result<ExitCode, Error> {
        let start = Instant::now();
        let sandbox =
            step("boot a QEMU VM with an agent in it", Sandbox::boot(&Machine::default())).await?;
        eprintln!(
            "           (QEMU {}, {}, sandbox {})",
            sandbox.qemu_version().await?,
            sandbox.guest().accelerator(),
            sandbox.id()
        );
        let options = vm_harness::ContainerOptions::default();
        let container =
            step("start a container in it", sandbox.try_start_container(&options)).await?;
        let volumes = [
            ("loop device", Volume::loop_device(SIZE), "/dev/xvda"),
            ("raw image", Volume::image(SIZE), "/dev/xvdb"),
        ];
        for (kind, volume, path) in &volumes {
            eprintln!("\n{kind} {} with {} MiB of random bytes:", volume.name(), SIZE >> 20);
            if !round_trip(&sandbox, &container, volume, path).await? {
                return Ok(ExitCode::FAILURE);
            }
        }
        eprintln!(
            "\nThe running container has read and written both volumes; every byte was right \
             ({:.1?}).",
            start.elapsed()
        );
        Ok(ExitCode::SUCCESS)
    }
}

/// Hot-plugs `volume`, and compares checksums in both directions. Prints what differs.
async fn round_trip(
    sandbox: &Sandbox,
    container: &Container,
    volume: &Volume,
    path: &str,
) -> Result<bool, Error> {
    let command = [
        "block-volume",
        "hot-plug",
        "--sandbox",
        sandbox.id(),
        "--container",
        container.id(),
        "--block-volume",
        volume.name(),
        "--device-path",
        path,
    ];
    eprintln!("$ ecr-runtime {}", command.join(" "));
    let finished = step(
        "hot-plug, from start to end of the process",
        sandbox.ecr_runtime().args(command).run(),
    )
    .await;
    eprint!("{}{}", finished.stdout, finished.stderr);
    if finished.status != 0 {
        eprintln!("ecr-runtime ended with {}\n{}", finished.status, sandbox.guest().report());
        return Ok(false);
    }
    let host = volume.checksum();
    let inside =
        step("SHA-256 of the device in the container", checksum_inside(container, path, SIZE))
            .await?;
    if !equal("host → container", &host, &inside) {
        return Ok(false);
    }
    let fresh = random_bytes(usize::try_from(SIZE).unwrap_or(usize::MAX));
    let sent: String = Sha256::digest(&fresh).iter().map(|byte| format!("{byte:02x}")).collect();
    let write = ["dd", &format!("of={path}"), "bs=64k", "iflag=fullblock", "conv=notrunc,fsync"]
        .map(str::to_owned);
    let written =
        step("new random bytes written in the container", container.try_exec(&write, &fresh))
            .await?;
    if written.status != 0 {
        eprintln!("dd in the container ended with {}: {}", written.status, written.error_text());
        return Ok(false);
    }
    Ok(equal("container → host", &sent, &volume.checksum()))
}

async fn checksum_inside(container: &Container, path: &str, size: u64) -> Result<String, Error> {
    // A device that is longer or shorter than the volume has another checksum.
    let command = ["sha256sum", path];
    let output = container.try_exec(&command, b"").await?;
    let length = container.try_exec(&["blockdev", "--getsize64", path], b"").await?;
    if length.text().trim() != size.to_string() {
        eprintln!("the device in the container has {} bytes, not {size}", length.text().trim());
    }
    Ok(output
        .text()
        .split_whitespace()
        .next()
        .unwrap_or("none (the container could not read the device)")
        .to_owned())
}

fn equal(direction: &str, expected: &str, found: &str) -> bool {
    if expected == found {
        eprintln!("           {direction}: equal, {expected}");
    } else {
        eprintln!("           {direction}: DIFFERENT, expected {expected}, found {found}");
    }
    expected == found
}
