//! A node with Kata's sandboxes: volumes are attached and detached by the code of `ecr-runtime`.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use host_trigger::{
    Deadline, command_line::in_process::AuditTrail, cri::Endpoint,
    output::stats_report::VolumeStats,
};

use super::{
    allowed_paths::AllowedPath,
    host::{AttachedVolume, Failure, Host},
    request::Request,
    sandbox_volumes::SandboxVolumes,
    statistics::CountedVolume,
    verb,
    work::Work,
};

/// The time for the counters of one sandbox, of which its lock is held.
const COUNT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where things are on the node.
#[derive(Debug, Clone)]
pub struct SandboxHost {
    /// The container engine's socket; found if it is not named.
    pub cri: Option<OsString>,
    /// The state directory of Kata; the usual ones if it is not named.
    pub run_dir: Option<PathBuf>,
    /// kubelet's directory.
    pub kubelet: PathBuf,
    /// The node's mount namespace, if this process has another one.
    pub mount_namespace: Option<PathBuf>,
    /// Which paths may be used.
    pub allowed: Vec<AllowedPath>,
    /// The time for one command.
    pub timeout: Duration,
    /// Where the records of plugs and unplugs go: a file, or the socket of a syslog; the node's
    /// /dev/log if none is named.
    pub audit_log: Option<PathBuf>,
}

impl Default for SandboxHost {
    fn default() -> Self {
        Self {
            cri: None,
            run_dir: None,
            kubelet: "/var/lib/kubelet".into(),
            mount_namespace: None,
            allowed: Vec::new(),
            timeout: Duration::from_secs(30),
            audit_log: None,
        }
    }
}

impl SandboxHost {
    /// Checks whether plugs and unplugs can be recorded.
    ///
    /// # Errors
    /// The log cannot be opened: nothing will be done. Without a log that is named, there is no
    /// syslog, and nothing is recorded.
    pub async fn check_audit_log(&self) -> Result<(), Failure> {
        let (namespace, log) = (self.mount_namespace.clone(), self.audit_log.clone());
        let checked =
            verb::on_own_thread(namespace, || async move { AuditTrail::check(log.as_deref()) });
        let checked = checked.await.map_err(|e| unexpected(&e))?;
        checked.map_err(|e| Failure::from(&e))
    }
}

impl Host for SandboxHost {
    async fn attach(&self, request: Request) -> Result<AttachedVolume, Failure> {
        let work = Work { host: self.clone(), request };
        let namespace = self.mount_namespace.clone();
        let done = verb::on_own_thread(namespace, || async move { work.attach().await });
        done.await.unwrap_or_else(|e| Err(unexpected(&e)))
    }

    async fn detach(&self, request: Request) -> Result<String, Failure> {
        let work = Work { host: self.clone(), request };
        let namespace = self.mount_namespace.clone();
        let done = verb::on_own_thread(namespace, || async move { work.detach().await });
        done.await.unwrap_or_else(|e| Err(unexpected(&e)))
    }

    async fn statistics(
        &self,
        wanted: Vec<CountedVolume>,
    ) -> Vec<Result<Vec<VolumeStats>, Failure>> {
        let (host, namespace) = (self.clone(), self.mount_namespace.clone());
        let done = verb::on_own_thread(namespace, || async move { host.count(wanted).await });
        done.await.unwrap_or_else(|e| vec![Err(unexpected(&e))])
    }
}

impl SandboxHost {
    /// The counters of each pod's volumes.
    async fn count(
        &self,
        mut wanted: Vec<CountedVolume>,
    ) -> Vec<Result<Vec<VolumeStats>, Failure>> {
        wanted.sort_by(|one, other| one.pod_uid.cmp(&other.pod_uid));
        wanted.dedup_by(|one, other| one.pod_uid == other.pod_uid);
        let timeout = self.timeout.min(COUNT_TIMEOUT);
        let mut counted = Vec::new();
        for CountedVolume { pod, pod_uid, .. } in wanted {
            let sandbox = async {
                let endpoint = Endpoint::find(self.cri.as_deref())?;
                endpoint.sandbox(&pod, Some(&pod_uid), Deadline::of_command(timeout)).await
            };
            counted.push(match sandbox.await {
                Ok(sandbox) => {
                    let (sandbox, run_dir) = (sandbox.id, self.run_dir.clone());
                    let audit = AuditTrail::default();
                    SandboxVolumes { sandbox, run_dir, timeout, audit }.statistics().await
                }
                Err(e) => Err(Failure::from(&e)),
            });
        }
        counted
    }
}

/// No thread, or no mount namespace.
fn unexpected(error: &std::io::Error) -> Failure {
    let message = format!("this node agent cannot work on the node: {error}");
    Failure { reason: "Unexpected".to_owned(), message, passes: true }
}
