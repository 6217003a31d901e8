//! Which cluster and which namespace: by the options that kubectl has for them, and its
//! configuration files.

use std::path::PathBuf;

use clap::Args;
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::error::Error;
use crate::resource::BlockVolumeAttachment;

/// Which cluster.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cluster")]
pub(super) struct ClusterArgs {
    /// Configuration file [default: the variable KUBECONFIG, then ~/.kube/config]
    #[arg(long, value_name = "PATH", global = true)]
    kubeconfig: Option<PathBuf>,

    /// Context of the configuration [default: its current one]
    #[arg(long, value_name = "NAME", global = true)]
    context: Option<String>,

    /// Namespace [default: that of the context]
    #[arg(short, long, value_name = "NAME", global = true)]
    pub(super) namespace: Option<String>,
}

/// A cluster, and a namespace in it.
pub(super) struct Cluster {
    pub(super) client: Client,
    pub(super) namespace: String,
}

impl ClusterArgs {
    /// The cluster that is meant. Nothing is asked of it yet.
    ///
    /// # Errors
    /// There is no configuration, or it has no such context.
    pub(super) async fn connect(&self) -> Result<Cluster, Error> {
        let options = KubeConfigOptions { context: self.context.clone(), ..Default::default() };
        let config = match &self.kubeconfig {
            Some(path) => {
                Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await?
            }
            None => Config::from_kubeconfig(&options).await?,
        };
        let namespace = self.namespace.clone().unwrap_or(config.default_namespace.clone());
        Ok(Cluster { client: Client::try_from(config).map_err(Error::Api)?, namespace })
    }
}

impl Cluster {
    /// The attachments of the namespace.
    pub(super) fn attachments(&self) -> Api<BlockVolumeAttachment> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}
