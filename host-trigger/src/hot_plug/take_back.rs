//! The undo of a plug that failed.

use agent_plugin::contract::block_volume::Detachment;
use serde_json::json;

use super::{Plug, Touched};
use crate::{
    Deadline, Error,
    agent::{self, Agent},
    fault,
    undo::{self, Whose},
};

impl Plug<'_> {
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
            let whose = match item.touched {
                Touched::Disk => Whose::Run(&item.intent.run),
                Touched::Records | Touched::Nothing => Whose::RecordsOf(&item.intent.run),
            };
            if let Err(e) = undo::remove(&mut self.link.qmp, &item.id, whose, deadline).await {
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
        let detachment = |&index: &usize| {
            let item = &self.items[index];
            let attachment = Some(self.attachment(item)).into();
            let outcome =
                item.attached.as_ref().and_then(|attached| attached.outcome.as_ref().cloned()).into();
            Detachment { attachment, outcome, ..Default::default() }
        };
        let detachments: Vec<_> = items.iter().map(detachment).collect();
        match undo::detach(&self.link.agent, detachments.clone(), deadline).await {
            Err(Error::AgentLost { .. }) => {
                let agent = Agent::new(agent::dial(&self.link.address, deadline).await?);
                undo::detach(&agent, detachments, deadline).await
            }
            done => done,
        }
    }
}
