//! Everything that a hot-plug changes in QEMU and in the guest, as a value that can be compared.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::agent_snapshot::AgentSnapshot;
use crate::{Container, Error, Sandbox, procfs::mounts};

/// The state of QEMU, the guest and its containers, as far as a hot-plug changes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// QEMU's block nodes: name and file.
    pub nodes: Vec<String>,
    /// QEMU's devices that have an ID.
    pub devices: Vec<String>,
    /// QEMU's descriptor sets with the opaque strings of their descriptors.
    pub fdsets: Vec<String>,
    /// The guest's SCSI hosts, targets and disks.
    pub scsi: Vec<String>,
    /// Each container's `/dev`: name, inode, mode, device number.
    pub container_devices: BTreeMap<String, Vec<String>>,
    /// Each container's mounts, in its mount namespace.
    pub container_mounts: BTreeMap<String, Vec<String>>,
    /// The guest's own mounts.
    pub guest_mounts: Vec<String>,
    /// The device rules (cgroup v1) or programs (v2) of each container and of its pod.
    pub device_filters: BTreeMap<String, Vec<String>>,
    /// The agent's threads and descriptors.
    pub agent: AgentSnapshot,
}

impl Snapshot {
    /// Takes a snapshot.
    ///
    /// # Panics
    /// QEMU, the agent or the observer does not answer.
    pub async fn of(sandbox: &Sandbox, containers: &[&Container]) -> Self {
        Self::take(sandbox, containers)
            .await
            .unwrap_or_else(|error| panic!("no snapshot: {}", error.chain()))
    }

    /// Takes a snapshot.
    ///
    /// # Errors
    /// QEMU, the agent or the observer does not answer.
    pub async fn try_of(sandbox: &Sandbox, containers: &[&Container]) -> Result<Self, Error> {
        Self::take(sandbox, containers).await
    }

    /// Compares the current state with this snapshot.
    ///
    /// # Panics
    /// Something changed; the message has the differences.
    pub async fn assert_unchanged(&self, sandbox: &Sandbox, containers: &[&Container]) {
        let changes = self.changes(sandbox, containers).await;
        let changes = changes.unwrap_or_else(|error| panic!("no snapshot: {}", error.chain()));
        assert!(
            changes.is_empty(),
            "something changed:\n{}\nbefore: {self:#?}",
            changes.join("\n")
        );
    }

    /// Returns the differences between the current state and this snapshot, a line each.
    ///
    /// The state has some seconds to settle. Threads and descriptors of the agent are compared
    /// last, because the commands that run in containers for the rest of the state occupy them,
    /// too.
    ///
    /// # Errors
    /// QEMU, the agent or the observer does not answer.
    pub async fn changes(
        &self,
        sandbox: &Sandbox,
        containers: &[&Container],
    ) -> Result<Vec<String>, Error> {
        let deadline = Instant::now() + sandbox.guest().scaled(Duration::from_secs(3));
        let mut now = loop {
            let now = Self::take(sandbox, containers).await?;
            if now.differs_in_the_agent_only(self) || Instant::now() > deadline {
                break now;
            }
            tracing::debug!(differences = ?differences(self, &now), "not settled yet");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        now.agent = self.agent.settled(sandbox).await?;
        Ok(differences(self, &now))
    }

    fn differs_in_the_agent_only(&self, before: &Self) -> bool {
        Self { agent: before.agent.clone(), ..self.clone() } == *before
    }

    async fn take(sandbox: &Sandbox, containers: &[&Container]) -> Result<Self, Error> {
        let mut monitor = sandbox.monitor().await?;
        let mut query = async |command: &str, arguments: Value| {
            monitor
                .execute(command, arguments)
                .await
                .map_err(|error| Error::Monitor(format!("{command}: {error}")))
        };
        let nodes = query("query-named-block-nodes", json!({ "flat": true })).await?;
        let devices = query("qom-list", json!({ "path": "/machine/peripheral" })).await?;
        let fdsets = query("query-fdsets", json!({})).await?;
        let observer = sandbox.observer();
        let mut container_devices = BTreeMap::new();
        let mut container_mounts = BTreeMap::new();
        let mut device_filters = BTreeMap::new();
        for container in containers {
            let listing = container
                .try_exec(
                    &[
                        "sh",
                        "-c",
                        "cd /dev && find . | sort | xargs stat -c '%n %i %f %t:%T %u:%g'",
                    ],
                    b"",
                )
                .await?;
            container_devices.insert(container.id().to_owned(), lines(&listing.text()));
            let listing = container.try_exec(&["cat", "/proc/self/mountinfo"], b"").await?;
            container_mounts.insert(container.id().to_owned(), mounts(&listing.text()));
            device_filters
                .insert(container.id().to_owned(), device_filter(sandbox, container.id()).await?);
        }
        Ok(Self {
            nodes: described(&nodes, |node| format!("{} {}", node["node-name"], node["file"])),
            devices: described(&devices, |device| format!("{} {}", device["name"], device["type"])),
            fdsets: described(&fdsets, |set| {
                let opaques = described(&set["fds"], |descriptor| descriptor["opaque"].to_string());
                format!("{} {}", set["fdset-id"], opaques.join(" "))
            }),
            scsi: lines(
                &observer.run(&["/bin/busybox", "ls", "/sys/bus/scsi/devices"]).await?.stdout,
            ),
            container_devices,
            container_mounts,
            guest_mounts: mounts(
                &observer.run(&["/bin/busybox", "cat", "/proc/1/mountinfo"]).await?.stdout,
            ),
            device_filters,
            agent: AgentSnapshot::of(sandbox).await?,
        })
    }
}

async fn device_filter(sandbox: &Sandbox, container: &str) -> Result<Vec<String>, Error> {
    let observer = sandbox.observer();
    let script = format!(
        "cd /sys/fs/cgroup/devices 2>/dev/null && cat pod/devices.list pod/{container}/devices.list"
    );
    let v1 = observer.run(&["/bin/busybox", "sh", "-c", &script]).await?;
    if v1.status == 0 {
        return Ok(lines(&v1.stdout));
    }
    let mut programs = Vec::new();
    for cgroup in ["/pod".to_owned(), format!("/pod/{container}")] {
        // A program that was attached again has another ID, so its instructions are compared.
        let attached = observer.programs(&cgroup).await?;
        programs
            .extend(attached.iter().map(|program| format!("{cgroup} {}", program.instructions)));
    }
    Ok(programs)
}

fn described(list: &Value, describe: impl Fn(&Value) -> String) -> Vec<String> {
    let mut described: Vec<String> = list.as_array().into_iter().flatten().map(describe).collect();
    described.sort();
    described
}

fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Returns the lines that only one of the two has.
fn differences(before: &Snapshot, after: &Snapshot) -> Vec<String> {
    let (before, after) = (format!("{before:#?}"), format!("{after:#?}"));
    let counted = |text: &str| {
        let mut counts: BTreeMap<String, isize> = BTreeMap::new();
        text.lines().for_each(|line| *counts.entry(line.trim().to_owned()).or_default() += 1);
        counts
    };
    let (before, after) = (counted(&before), counted(&after));
    let mut lines = Vec::new();
    for line in before.keys().chain(after.keys().filter(|line| !before.contains_key(*line))) {
        let count =
            |counts: &BTreeMap<String, isize>| counts.get(line).copied().unwrap_or_default();
        match count(&after) - count(&before) {
            0 => {}
            more if more > 0 => lines.push(format!("added: {line} ({more} more)")),
            fewer => lines.push(format!("removed: {line} ({} fewer)", -fewer)),
        }
    }
    lines
}
