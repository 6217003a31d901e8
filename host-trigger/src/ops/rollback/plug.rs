//! Rolls back a hot-plug that failed.

use block_volume_api::block_volume::Detachment;
use block_volume_qmp::Qmp;
use serde_json::json;

use crate::{
    Deadline, Error,
    diagnostics::StepLog,
    fault,
    kata::{
        agent::Agent,
        agent_address::{self, AgentAddress},
        sandbox::Sandbox,
    },
    ops::guest_request::{self, ROLLBACK_TIME},
    qemu::removal::{self, Owner},
    volume_id::VolumeId,
};

/// How much of a volume this run may have put into QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Added {
    /// Nothing.
    Nothing,
    /// Descriptors with records.
    Records,
    /// Records, block node and device.
    Disk,
    /// The records of a further attachment.
    Attachment,
}

/// A volume that is rolled back.
#[derive(Debug)]
pub(crate) struct AddedVolume {
    pub(crate) id: VolumeId,
    pub(crate) added: Added,
    /// The name of this run in the records.
    pub(crate) run: String,
    pub(crate) container: String,
    pub(crate) path: String,
    /// What the guest is asked to detach.
    pub(crate) detachment: Detachment,
}

impl AddedVolume {
    /// Describes what this run may have put into QEMU and the guest; `None` for nothing.
    pub(crate) fn describe(&self, guest_asked: bool) -> Option<String> {
        let parts = match self.added {
            Added::Nothing => return None,
            Added::Records => "descriptors",
            Added::Disk => "descriptors, block node, device",
            Added::Attachment => "the descriptor of this attachment",
        };
        let part = match self.detachment.attachment.mount.is_some() {
            true => "mount",
            false => "device node",
        };
        let guest = match guest_asked {
            true => format!(", and its disk and {part} in the guest"),
            false => String::new(),
        };
        Some(format!("volume {}: {parts} in QEMU{guest}", self.id))
    }
}

/// The rollback of a hot-plug of several volumes.
#[derive(Debug)]
pub(crate) struct PlugRollback<'a> {
    pub(crate) sandbox: &'a Sandbox,
    pub(crate) log: StepLog,
    pub(crate) deadline: Deadline,
    pub(crate) qmp: &'a mut Qmp,
    pub(crate) agent: &'a Agent,
    pub(crate) address: &'a AgentAddress,
    /// The guest was asked to attach, and did not reply that it rolled back everything.
    pub(crate) guest_asked: bool,
    /// In the order in which they were added.
    pub(crate) volumes: Vec<AddedVolume>,
}

impl PlugRollback<'_> {
    /// Rolls back everything that this run may have done. Returns what could not be rolled back.
    pub(crate) async fn run(&mut self) -> Vec<String> {
        self.volumes.retain(|volume| volume.added != Added::Nothing);
        self.volumes.reverse();
        if self.volumes.is_empty() {
            return Vec::new();
        }
        let deadline = self.deadline.max(Deadline::after(ROLLBACK_TIME));
        let names: Vec<_> = self.volumes.iter().map(|volume| volume.id.to_string()).collect();
        let all = |why: &Error| vec![format!("volume {}: {}", names.join(", "), why.message())];
        match self.ensure_connection(deadline).await {
            Ok(true) => {}
            // The VM ended with QEMU, and everything in it.
            Ok(false) => return Vec::new(),
            Err(e) => return all(&e),
        }
        if self.guest_asked
            && let Err(e) = self.detach(deadline).await
        {
            // Removing the disk while the guest uses it might make things worse.
            return all(&e);
        }
        let mut left = Vec::new();
        for AddedVolume { id, added, run, container, path, .. } in &self.volumes {
            let removed = match added {
                Added::Attachment => {
                    removal::remove_attachment(self.qmp, id, container, path).await
                }
                Added::Disk => removal::remove(self.qmp, id, Owner::Run(run), deadline).await,
                Added::Records | Added::Nothing => {
                    removal::remove(self.qmp, id, Owner::RecordsOf(run), deadline).await
                }
            };
            if let Err(e) = removed {
                left.push(format!("volume {id}: {}", e.message()));
            }
            if let Err(e) = fault::point("rollback-after-remove").await {
                left.push(e.message());
            }
        }
        left
    }

    /// Makes sure of a connection on which no command is in flight. Returns false if QEMU has
    /// ended.
    async fn ensure_connection(&mut self, deadline: Deadline) -> Result<bool, Error> {
        self.qmp.set_deadline(deadline);
        if self.qmp.execute("query-status", json!({})).await.is_ok() {
            return Ok(true);
        }
        self.log.step(|| "connecting to QEMU again".to_owned());
        self.qmp.close();
        match super::reconnect(self.sandbox, deadline).await? {
            Some(qmp) => {
                *self.qmp = qmp;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    async fn detach(&mut self, deadline: Deadline) -> Result<(), Error> {
        self.log.step(|| "the guest rolls back".to_owned());
        let detachments: Vec<_> =
            self.volumes.iter().map(|volume| volume.detachment.clone()).collect();
        match guest_request::detach(self.agent, detachments.clone(), deadline).await {
            Err(Error::AgentLost { .. }) => {
                let agent = Agent::new(agent_address::dial(self.address, deadline).await?);
                guest_request::detach(&agent, detachments, deadline).await
            }
            done => done,
        }
    }
}
