//! `vm-harness boot`: a sandbox to work with, by hand or by a script.

mod proxies;

use std::{
    fs,
    io::{IsTerminal as _, Write as _},
    os::unix::fs::FileTypeExt as _,
    path::PathBuf,
    process::ExitCode,
};

use clap::Args;
use serde_json::{Value, json};
use tokio::{
    io::AsyncReadExt as _,
    signal::unix::{SignalKind, signal},
};
use vm_harness::{Cgroup, ContainerOptions, DeviceFilter, Error, Machine, Sandbox, Scan};

use self::proxies::{Proxies, ProxyOptions};
use super::{guest_options::GuestOptions, progress::ProgressLine};

/// What to boot.
#[derive(Debug, Args)]
#[command(before_help = "Example: vm-harness boot --containers 2 --cgroup v1 --device-filter bpf")]
pub(crate) struct Boot {
    /// How many containers to start
    #[arg(long, default_value_t = 1, value_name = "N")]
    containers: u32,
    /// The guest's cgroup hierarchy
    #[arg(long, value_enum, default_value = "v2")]
    cgroup: Cgroup,
    /// How the guest's kernel finds disks (scsi_mod.scan)
    #[arg(long, value_enum, default_value = "none")]
    scan: Scan,
    /// The containers' device filter
    #[arg(long, value_enum, default_value = "none")]
    device_filter: DeviceFilter,
    /// The name of the image in target/images; another than the default one keeps its own agent
    #[arg(long, default_value = "default", value_name = "NAME")]
    image: String,
    #[command(flatten)]
    guest: GuestOptions,
    #[command(flatten)]
    proxies: ProxyOptions,
}

impl Boot {
    pub(crate) async fn run(self) -> Result<ExitCode, Error> {
        // Before the boot, so that a signal during the boot ends the sandbox cleanly, too.
        let stop = stop_requested()?;
        tokio::pin!(stop);
        tokio::select! {
            booted = self.boot_and_report() => {
                let (sandbox, _proxies) = booted?;
                tokio::select! {
                    () = &mut stop => {}
                    status = sandbox.guest().ended() => {
                        eprintln!("QEMU ended ({status})\n{}", sandbox.guest().report());
                        return Ok(ExitCode::FAILURE);
                    }
                }
            }
            () = &mut stop => {}
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn boot_and_report(&self) -> Result<(Sandbox, Option<Proxies>), Error> {
        let machine = Machine {
            cgroup: self.cgroup,
            scan: self.scan,
            kernel_parameters: self.guest.kernel_param.clone(),
            // A proxy takes the place of the wrapper's monitor.
            wrapped: !self.proxies.are_requested(),
            ..Machine::default()
        };
        let progress = ProgressLine::start("booting the sandbox");
        let sandbox = Sandbox::boot_in(&self.guest.environment(), &self.image, &machine).await?;
        let options =
            ContainerOptions { device_filter: self.device_filter, ..ContainerOptions::default() };
        let mut containers = Vec::new();
        for _ in 0..self.containers {
            containers.push(sandbox.try_start_container(&options).await?.id().to_owned());
        }
        progress.end();
        let proxies = self.proxies.start(&sandbox)?;
        let mut report = report(&sandbox, &containers).await?;
        if let Some(proxies) = &proxies {
            report["proxies"] = proxies.report();
        }
        println!("{report}");
        std::io::stdout().flush().map_err(|source| Error::File {
            action: "write to",
            path: "standard output".into(),
            source,
        })?;
        hints(&sandbox, &containers, proxies.as_ref());
        Ok((sandbox, proxies))
    }
}

/// Returns what a script needs to reach the sandbox.
async fn report(sandbox: &Sandbox, containers: &[String]) -> Result<Value, Error> {
    let image = fs::read_to_string(sandbox.image().join("image.json")).unwrap_or_default();
    let image: Value = serde_json::from_str(&image).unwrap_or_default();
    Ok(json!({
        "run_dir": sandbox.run_dir(),
        "sandbox": sandbox.id(),
        "containers": containers,
        "qmp": sandbox.qmp_socket(),
        "agent": sandbox.agent_url(),
        "plugin": sandbox.plugin_url(),
        "qemu_pid": sandbox.guest().qemu_id(),
        "accel": sandbox.guest().accelerator(),
        "image": sandbox.image(),
        "kernel": image["kernel"],
        "qemu": sandbox.qemu_version().await?,
        "console": sandbox.guest().console().path(),
        "origin": sandbox.guest().origin().to_string(),
        "boot_ms": u64::try_from(sandbox.boot_time().as_millis()).unwrap_or(u64::MAX),
    }))
}

/// Prints commands to try next.
fn hints(sandbox: &Sandbox, containers: &[String], proxies: Option<&Proxies>) {
    let program = |path: Result<PathBuf, Error>, name: &str| {
        path.map_or(name.to_owned(), |path| path.display().to_string())
    };
    let environment = sandbox.environment();
    let harness = program(environment.vm_harness(), "vm-harness");
    let runtime = program(environment.ecr_runtime(), "ecr-runtime");
    let run_dir = sandbox.run_dir().display();
    let volumes = format!("{runtime} --run-dir {run_dir} block-volume");
    let plugin = match sandbox.has_own_plugin_port() {
        true => format!(" --agent {}", sandbox.plugin_url()),
        false => String::new(),
    };
    eprintln!(
        "\nThe sandbox is running ({}). In another terminal:\n",
        sandbox.guest().accelerator()
    );
    if let Some(container) = containers.first() {
        let at = format!("--container {} --device-path /dev/xvda", &container[..8]);
        eprintln!("  truncate -s 64M /tmp/volume.img");
        eprintln!("  {volumes} hot-plug {at} --block-volume /tmp/volume.img{plugin}");
        eprintln!("  {volumes} list --sandbox {}{plugin}", &sandbox.id()[..8]);
        eprintln!(
            "  {harness} exec --run-dir {run_dir} --container {} -it -- sh   # ls -l /dev/xvda",
            &container[..8]
        );
        eprintln!("  {volumes} hot-unplug {at}{plugin}");
    }
    eprintln!("  {harness} console --run-dir {run_dir}");
    eprintln!("  {harness} logs --run-dir {run_dir}");
    for hint in proxies.iter().flat_map(|proxies| proxies.hints()) {
        eprintln!("  {hint}");
    }
    eprintln!("\nIt ends when standard input closes, or with Ctrl-C.");
}

/// Completes at the end of standard input (if that is a pipe or a terminal), or at SIGINT or
/// SIGTERM.
fn stop_requested() -> Result<impl Future<Output = ()>, Error> {
    let signalled = signalled()?;
    let pipe = fs::metadata("/dev/stdin")
        .is_ok_and(|kind| kind.file_type().is_fifo() || kind.file_type().is_socket());
    let reads_input = pipe || std::io::stdin().is_terminal();
    Ok(async move {
        let end_of_input = async {
            if !reads_input {
                return std::future::pending().await;
            }
            let mut stdin = tokio::io::stdin();
            let mut buffer = [0; 4096];
            while stdin.read(&mut buffer).await.is_ok_and(|length| length > 0) {}
        };
        tokio::select! {
            () = end_of_input => {}
            () = signalled => {}
        }
    })
}

/// Completes at SIGINT or SIGTERM.
pub(super) fn signalled() -> Result<impl Future<Output = ()>, Error> {
    let listen = |kind| {
        signal(kind).map_err(|source| Error::File {
            action: "watch",
            path: "signals".into(),
            source,
        })
    };
    let (mut interrupt, mut terminate) =
        (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
