//! A small agent for the project's own guest image. It embeds agent-plugin as kata-agent does, and
//! behaves like kata-agent where that matters to the plugin: one reaper for all children, one lock
//! for the sandbox, pinned namespaces, a policy, cgroups that it mounts itself. crun runs the
//! containers.
//!
//! It is PID 1, or a service of an init system. The tokio runtime has one thread: the guest has one
//! processor, and the agent does no computation.

mod block_volume;
mod bundle;
mod cgroups;
mod config;
mod container;
mod crun;
mod error;
mod health;
mod policy;
mod pool;
mod process;
mod reaper;
mod sandbox;
mod service;
mod streams;
mod terminal;
mod uevents;

use std::{error::Error, io, sync::Arc};

use agent_api::agent_ttrpc::{create_agent_service, create_health};
use nix::{
    sys::{
        prctl::set_child_subreaper,
        reboot::{RebootMode, reboot},
    },
    unistd,
};
use tokio::sync::Notify;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener};

use crate::{
    block_volume::BlockVolumeAgent, cgroups::Cgroups, config::Config, crun::Crun, health::Health,
    policy::Policy, pool::Pool, reaper::Reaper, sandbox::Sandbox, service::AgentService,
};

/// The feature that callers look for in `GetGuestDetails`.
const FEATURE: &str = "block-volume";

#[tokio::main(flavor = "current_thread")]
async fn main() {
    if let Err(error) = run().await {
        println!("reference-agent: {error}");
    }
    // PID 1 must not return: the kernel would panic.
    if std::process::id() == 1 {
        unistd::sync();
        let _ = reboot(RebootMode::RB_POWER_OFF);
    }
}

/// Serves until the sandbox is destroyed.
async fn run() -> Result<(), Box<dyn Error>> {
    let config = Config::read()?;
    tracing_subscriber::fmt()
        .with_max_level(config.log)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .with_writer(io::stdout)
        .init();
    if config.log_uevents {
        uevents::log()?;
    }
    set_child_subreaper(true)?;
    let cgroups = Cgroups::prepare(config.cgroup_v2)?;
    let policy = Arc::new(Policy::read(&config)?);
    let sandbox = Sandbox::new(Crun::new(Reaper::start()?), cgroups, config.no_pivot_root);
    let destroyed = Arc::new(Notify::new());

    let mut service = AgentService {
        sandbox: Arc::clone(&sandbox),
        policy: Arc::clone(&policy),
        extra_features: Vec::new(),
        pool: config.pool.map(Pool::new),
        destroyed: Arc::clone(&destroyed),
    };
    // Without the feature the linker finds no use for the plugin and drops it.
    let wanted = cfg!(feature = "block-volume") && config.block_volume;
    let plugin = wanted.then(|| Arc::new(BlockVolumeAgent { sandbox, policy }));
    if plugin.is_some() {
        service.extra_features.push(FEATURE.to_owned());
    }
    let mut server = ttrpc::r#async::Server::new()
        .add_listener(agent_plugin::incoming(listen(config.port)?)?)
        .register_service(create_agent_service(Arc::new(service)))
        .register_service(create_health(Arc::new(Health)));
    match (plugin, config.block_volume_port) {
        (Some(plugin), Some(port)) => {
            let listener = listen(port)?;
            tokio::spawn(async move {
                if let Err(error) = agent_plugin::serve(plugin, listener).await {
                    tracing::error!("serving the plugin on port {port}: {error}");
                }
            });
        }
        (Some(plugin), None) => server = server.register_service(agent_plugin::service(plugin)),
        (None, _) => {}
    }
    server.start().await?;
    tracing::info!("serving at vsock port {}, cgroup {cgroups:?}", config.port);

    destroyed.notified().await;
    // Wait until the last reply is on its way.
    server.shutdown().await?;
    Ok(())
}

fn listen(port: u32) -> io::Result<VsockListener> {
    VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))
}
