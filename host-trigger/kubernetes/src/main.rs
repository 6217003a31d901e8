//! The program of the fleet: the controller, the node agents, and what attachment pods run.

use std::{
    ffi::OsString,
    io::Write as _,
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use block_volume_kubernetes::{
    Error,
    controller::{self, Settings},
    http::{self, Served},
    lease::Lease,
    node::{self, AllowedPath, SandboxHost},
    resource,
};
use clap::{Args, Parser, Subcommand};
use kube::Client;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The name of the controller's lease.
const LEASE: &str = "block-volume-controller";

/// Hot-plugs block volumes into running Kata pods as Kubernetes resources ask for it
#[derive(Debug, Parser)]
#[command(name = "block-volume-kubernetes", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Give attachments to nodes, and bring their claims there
    Controller(ControllerArgs),
    /// Plug the volumes of one node
    Node(NodeArgs),
    /// Do nothing until a signal arrives: what attachment pods run
    Hold,
    /// Print the definition of the resource, as JSON
    Crd,
}

#[derive(Debug, Args)]
struct ControllerArgs {
    /// Image of attachment pods: one with this program
    #[arg(long, value_name = "IMAGE", env = "IMAGE")]
    image: String,

    /// Namespace of the lease
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE")]
    namespace: String,

    /// Name of this replica in the lease
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    identity: String,

    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
struct NodeArgs {
    /// Name of the node
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node: String,

    /// Path of the node that attachments of a namespace may use: NAMESPACE=PREFIX, or *=PREFIX for
    /// every namespace; can be repeated [default: none]
    #[arg(long, value_name = "RULE")]
    allow_host_path: Vec<AllowedPath>,

    /// CRI socket of the container engine [default: the only usual one that exists]
    #[arg(long, value_name = "PATH")]
    cri: Option<OsString>,

    /// State directory of Kata [default: /run/vc, then /run/kata]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,

    /// Directory of kubelet
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    kubelet_dir: PathBuf,

    /// Mount namespace of the node, such as /proc/1/ns/mnt; all paths are paths there [default: its
    /// own]
    #[arg(long, value_name = "PATH")]
    mount_namespace: Option<PathBuf>,

    /// Where a record of each plug and unplug is written: a file or a syslog socket of the node
    /// [default: its /dev/log, if it exists]
    #[arg(long, value_name = "PATH")]
    audit_log: Option<PathBuf>,

    /// Seconds for one attach or detach
    #[arg(long, value_name = "N", default_value_t = 30,
        value_parser = clap::value_parser!(u64).range(1..=600))]
    timeout: u64,

    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
struct Server {
    /// Address of /healthz, /readyz and /metrics
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9822")]
    listen: SocketAddr,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(
            EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .init();
    match run(cli.role) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{}", e.chain());
            ExitCode::FAILURE
        }
    }
}

fn run(role: Role) -> Result<(), Error> {
    // Before there are threads.
    host_trigger::inherited::prepare().map_err(Error::Process)?;
    let runtime = match &role {
        Role::Hold | Role::Crd => tokio::runtime::Builder::new_current_thread(),
        Role::Controller(_) | Role::Node(_) => tokio::runtime::Builder::new_multi_thread(),
    }
    .enable_all()
    .build()
    .map_err(Error::Signals)?;
    runtime.block_on(async {
        match role {
            Role::Controller(arguments) => controller(arguments).await,
            Role::Node(arguments) => node(arguments).await,
            Role::Hold => {
                Ended::catch()?.next().await;
                Ok(())
            }
            Role::Crd => {
                let text = serde_json::to_string_pretty(&resource::definition())? + "\n";
                match std::io::stdout().write_all(text.as_bytes()) {
                    // A reader that closes its end early has what it wanted.
                    Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::Output(e)),
                    _ => Ok(()),
                }
            }
        }
    })
}

async fn controller(arguments: ControllerArgs) -> Result<(), Error> {
    let mut ended = Ended::catch()?;
    let (client, served) = start(&arguments.server).await?;
    let mut lease = Lease::new(client.clone(), &arguments.namespace, LEASE, &arguments.identity);
    // A replica that waits is ready: it works as soon as it can.
    served.is_ready.store(true, Ordering::Relaxed);
    tokio::select! {
        () = lease.acquire() => {}
        () = ended.next() => return Ok(()),
    }
    let settings = Settings { image: arguments.image };
    let metrics = served.metrics.clone();
    tokio::select! {
        () = controller::run(client, settings, metrics, async move { ended.next().await }) => {}
        lost = lease.hold() => return Err(lost),
    }
    lease.release().await
}

async fn node(arguments: NodeArgs) -> Result<(), Error> {
    let mut ended = Ended::catch()?;
    let (client, served) = start(&arguments.server).await?;
    let host = SandboxHost {
        cri: arguments.cri,
        run_dir: arguments.run_dir,
        kubelet: arguments.kubelet_dir,
        mount_namespace: arguments.mount_namespace,
        allowed: arguments.allow_host_path,
        timeout: Duration::from_secs(arguments.timeout),
        audit_log: arguments.audit_log,
    };
    if let Err(e) = host.check_audit_log().await {
        tracing::warn!(reason = e.reason, "plugs and unplugs are not recorded: {}", e.message);
    }
    served.is_ready.store(true, Ordering::Relaxed);
    let metrics = served.metrics.clone();
    node::run(client, &arguments.node, host, metrics, async move { ended.next().await }).await;
    Ok(())
}

/// Connects to the API server, and serves kubelet and Prometheus.
async fn start(server: &Server) -> Result<(Client, Arc<Served>), Error> {
    let client = Client::try_from(kube::Config::infer().await?)?;
    let served = Arc::new(Served::default());
    let listener = http::listen(server.listen).await?;
    tokio::spawn(http::serve(listener, served.clone()));
    Ok((client, served))
}

/// The signals that end this program.
struct Ended {
    terminate: Signal,
    interrupt: Signal,
}

impl Ended {
    fn catch() -> Result<Self, Error> {
        let catch = |kind| signal(kind).map_err(Error::Signals);
        Ok(Self {
            terminate: catch(SignalKind::terminate())?,
            interrupt: catch(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
