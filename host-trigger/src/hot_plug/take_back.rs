//! The undo of a plug that failed.

use serde_json::json;

use super::{Item, Plug, Touched};
use crate::{
    Deadline, Error,
    agent::{self, Agent},
    fault,
    record::Intent,
    undo::{self, Whose},
};

impl Plug<'_> {
    /// What this run may have put into QEMU and the guest, for people.
    pub(super) fn touched(&self) -> Vec<String> {
        let guest = if self.guest_asked { ", and what the guest has of it" } else { "" };
        let parts = |item: &Item| match item.touched {
            Touched::Nothing => None,
            Touched::Records => Some("descriptors"),
            Touched::Disk => Some("descriptors, block node, device"),
            Touched::Use => Some("the descriptor of this use"),
        };
        let text =
            |item: &Item| Some(format!("volume {}: {} in QEMU{guest}", item.id, parts(item)?));
        self.items.iter().filter_map(text).collect()
    }

    /// Undoes all that this run may have done. What could not be undone is named.
    pub(super) async fn take_back(&mut self) -> Vec<String> {
        let touched: Vec<usize> = (0..self.items.len())
            .rev()
            .filter(|&index| self.items[index].touched != Touched::Nothing)
            .collect();
        if touched.is_empty() {
            return Vec::new();
        }
        let deadline = self.deadline.max(Deadline::after(undo::LEAST_TIME));
        let names: Vec<_> = touched.iter().map(|&index| self.items[index].id.to_string()).collect();
        let all = |why: &Error| vec![format!("volume {}: {}", names.join(", "), why.message())];
        match self.reach_qemu(deadline).await {
            Ok(true) => {}
            // With QEMU the VM is gone, and all that it had.
            Ok(false) => return Vec::new(),
            Err(e) => return all(&e),
        }
        if self.guest_asked
            && let Err(e) = self.detach(&touched, deadline).await
        {
            // Taking the disk from under the guest might make it worse.
            return all(&e);
        }
        let mut left = Vec::new();
        for index in touched {
            let item = &self.items[index];
            let Intent { run, container, path, .. } = &item.intent;
            let qmp = &mut self.link.qmp;
            let removed = match item.touched {
                Touched::Use => undo::remove_use(qmp, &item.id, container, path).await,
                Touched::Disk => undo::remove(qmp, &item.id, Whose::Run(run), deadline).await,
                Touched::Records | Touched::Nothing => {
                    undo::remove(qmp, &item.id, Whose::RecordsOf(run), deadline).await
                }
            };
            if let Err(e) = removed {
                left.push(format!("volume {}: {}", item.id, e.message()));
            }
            if let Err(e) = fault::point("undo-after-remove").await {
                left.push(e.message());
            }
        }
        left
    }

    /// Makes sure of a connection on which no command is under way. Is there still a QEMU?
    async fn reach_qemu(&mut self, deadline: Deadline) -> Result<bool, Error> {
        self.link.qmp.set_deadline(deadline);
        if self.link.qmp.execute("query-status", json!({})).await.is_ok() {
            return Ok(true);
        }
        self.note(|| "connecting to QEMU again".to_owned());
        self.link.qmp.close();
        let again = undo::reconnect(self.place, deadline).await?;
        let alive = again.is_some();
        if let Some(qmp) = again {
            self.link.qmp = qmp;
        }
        Ok(alive)
    }

    async fn detach(&mut self, items: &[usize], deadline: Deadline) -> Result<(), Error> {
        self.note(|| "the guest takes back what it did".to_owned());
        let detachments: Vec<_> =
            items.iter().map(|&index| self.items[index].detachment()).collect();
        match undo::detach(&self.link.agent, detachments.clone(), deadline).await {
            Err(Error::AgentLost { .. }) => {
                let agent = Agent::new(agent::dial(&self.link.address, deadline).await?);
                undo::detach(&agent, detachments, deadline).await
            }
            done => done,
        }
    }
}
