//! Who else in QEMU uses the block node of a volume: block jobs (backup, mirror), exports (NBD),
//! and nodes on top of it (snapshots, filters). None of them is ours. While one of them has the
//! node, QEMU refuses `blockdev-del` and `block_resize`, so they are looked for before anything is
//! changed.
//!
//! `query-block-jobs` does not say which node a job works on. But a job puts a filter node on top
//! of the node that it reads, and
//! [`x-debug-query-block-graph`](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html#command-QMP-block-core.x-debug-query-block-graph)
//! says what each node is on top of. It is not stable; where it is not there, `query-blockstats`
//! says it, too.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use block_volume_qmp::{Command, Event, Qmp, QmpError, Replies};
use serde::Deserialize;
use serde_json::json;

use crate::{Deadline, Error, volume_id::VolumeId};

/// The events after which a user may be gone.
const EVENTS: [&str; 5] = [
    "BLOCK_JOB_COMPLETED",
    "BLOCK_JOB_CANCELLED",
    "BLOCK_JOB_ERROR",
    "JOB_STATUS_CHANGE",
    "BLOCK_EXPORT_DELETED",
];

/// The users of the block nodes of QEMU, as they are now.
#[derive(Debug)]
pub(crate) struct NodeUsers {
    /// The drivers of all nodes, by name.
    drivers: HashMap<String, String>,
    /// What each node is on top of, by name.
    below: HashMap<String, Vec<String>>,
    jobs: Vec<Job>,
    exports: Vec<Export>,
}

/// One user of a volume's block node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NodeUser {
    /// A block job.
    Job(Job),
    /// An export.
    Export(Export),
    /// A node on top of it that belongs to no job: its name and its driver.
    Node(String, String),
}

/// A block job, as `query-block-jobs` describes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Job {
    #[serde(rename = "device")]
    id: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    status: String,
}

/// An export, as `query-block-exports` describes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Export {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    node_name: String,
    #[serde(default)]
    shutting_down: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct NodeDriver {
    node_name: Option<String>,
    drv: String,
}

/// The block graph. A node of it is a block node, or a user of one.
#[derive(Deserialize)]
struct Graph {
    nodes: Vec<GraphNode>,
    edges: Vec<GraphEdge>,
}

#[derive(Deserialize)]
struct GraphNode {
    id: u64,
    #[serde(rename = "type")]
    kind: GraphKind,
    name: String,
}

#[derive(PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum GraphKind {
    BlockDriver,
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct GraphEdge {
    parent: u64,
    child: u64,
}

impl Graph {
    /// What each block node is on top of, by name.
    fn below(self) -> HashMap<String, Vec<String>> {
        let is_node = |node: &GraphNode| node.kind == GraphKind::BlockDriver;
        let names = self.nodes.into_iter().filter(is_node).map(|node| (node.id, node.name));
        let names: HashMap<_, _> = names.collect();
        let mut below: HashMap<_, _> =
            names.values().map(|name| (name.clone(), Vec::new())).collect();
        for GraphEdge { parent, child } in self.edges {
            if let (Some(parent), Some(child)) = (names.get(&parent), names.get(&child)) {
                below.entry(parent.clone()).or_default().push(child.clone());
            }
        }
        below
    }
}

/// A node with the nodes that it is on top of: `parent` is QEMU's name for its `file`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct NodeStats {
    node_name: Option<String>,
    parent: Option<Box<NodeStats>>,
    backing: Option<Box<NodeStats>>,
}

impl fmt::Display for NodeUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job(Job { id, kind, status }) => write!(f, "block job {id} ({kind}, {status})"),
            Self::Export(Export { id, kind, shutting_down, .. }) => {
                let state = if *shutting_down { "shutting down" } else { "active" };
                write!(f, "export {id} ({kind}, {state})")
            }
            Self::Node(name, driver) => write!(f, "block node {name} ({driver})"),
        }
    }
}

impl NodeUsers {
    /// The queries of all users.
    pub(crate) fn queries() -> [Command<'static>; 3] {
        ["query-block-jobs", "query-block-exports", "x-debug-query-block-graph"]
            .map(|query| Command::new(query, json!({})))
    }

    /// Asks QEMU.
    ///
    /// # Errors
    /// It does not reply, or not in the documented form.
    pub(crate) async fn read(qmp: &mut Qmp) -> Result<Self, QmpError> {
        let mut replies = qmp.send_all(&Self::queries()).await;
        Self::from_replies(qmp, &mut replies).await
    }

    /// Reads the replies to [`queries`](Self::queries), and asks `qmp` for what they do not tell.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(crate) async fn from_replies(
        qmp: &mut Qmp,
        replies: &mut Replies,
    ) -> Result<Self, QmpError> {
        let jobs = replies.read()?;
        let exports = match replies.read() {
            // It was built without any kind of export.
            Err(QmpError::Refused { class, .. }) if class == "CommandNotFound" => Vec::new(),
            exports => exports?,
        };
        let below = match replies.read::<Graph>() {
            Err(e) if e.ends_connection() => return Err(e),
            Ok(graph) => graph.below(),
            // QEMU does not promise that it has the query, or what the reply looks like.
            Err(_) => Self::below_by_statistics(qmp).await?,
        };
        let mut users = Self { drivers: HashMap::new(), below, jobs, exports };
        if users.is_shared() {
            let nodes: Vec<NodeDriver> =
                qmp.query("query-named-block-nodes", json!({"flat": true})).await?;
            let named = nodes.into_iter().filter_map(|node| Some((node.node_name?, node.drv)));
            users.drivers = named.collect();
        }
        Ok(users)
    }

    /// What each node is on top of, by a query whose reply is five times as long.
    async fn below_by_statistics(qmp: &mut Qmp) -> Result<HashMap<String, Vec<String>>, QmpError> {
        let stats: Vec<NodeStats> =
            qmp.query("query-blockstats", json!({"query-nodes": true})).await?;
        let mut below = HashMap::new();
        for NodeStats { node_name, parent, backing } in stats {
            let names = [parent, backing].into_iter().flatten().filter_map(|node| node.node_name);
            below.extend(node_name.map(|name| (name, names.collect())));
        }
        Ok(below)
    }

    /// Whether any volume has a node on top of it. Otherwise no driver has to be known.
    fn is_shared(&self) -> bool {
        let mut all = self.below.values().flatten();
        all.any(|name| VolumeId::of_name(name).is_some())
    }

    /// The users of the volume's block node, if it has one.
    pub(crate) fn of(&self, id: &VolumeId) -> Vec<NodeUser> {
        let own = self.closure(id.node(), |name| self.below.get(name).cloned().unwrap_or_default());
        let above = self.closure(id.node(), |name| {
            let is_above = |(_, below): &(&String, &Vec<String>)| below.iter().any(|on| on == name);
            self.below.iter().filter(is_above).map(|(above, _)| above.clone()).collect()
        });
        let mut nodes: Vec<_> = above.iter().filter(|name| **name != id.node()).collect();
        nodes.sort_unstable();
        let mut users = Vec::new();
        for name in nodes {
            let driver = self.drivers.get(name).cloned().unwrap_or_default();
            let jobs = self.jobs.iter().filter(|job| job.uses_filter(&driver));
            let found: Vec<_> = jobs.cloned().map(NodeUser::Job).collect();
            match found.is_empty() {
                true => users.push(NodeUser::Node(name.clone(), driver)),
                false => users.extend(found),
            }
        }
        let exports = self.exports.iter().filter(|export| {
            let name = &export.node_name;
            own.contains(name) || above.contains(name)
        });
        users.extend(exports.cloned().map(NodeUser::Export));
        users.dedup();
        users
    }

    /// All names that `next` leads to from `start`, with it.
    fn closure(&self, start: String, next: impl Fn(&str) -> Vec<String>) -> HashSet<String> {
        let (mut found, mut ahead) = (HashSet::new(), vec![start]);
        while let Some(name) = ahead.pop() {
            ahead.extend(next(&name).into_iter().filter(|next| !found.contains(next)));
            found.insert(name);
        }
        found
    }

    /// Checks that nobody else uses the volume's block node.
    ///
    /// # Errors
    /// Somebody does.
    pub(crate) fn check(&self, id: &VolumeId) -> Result<(), Error> {
        let users = self.of(id);
        if users.is_empty() {
            return Ok(());
        }
        Err(Error::NodeInUse {
            volume: id.to_string(),
            users: users.iter().map(ToString::to_string).collect(),
        })
    }
}

impl Job {
    /// Whether the job uses filter nodes of this driver. Of two jobs of the same kind on different
    /// nodes, QEMU does not say which is whose: both are named.
    fn uses_filter(&self, driver: &str) -> bool {
        match driver {
            "copy-before-write" | "backup-top" => self.kind == "backup",
            "mirror_top" => self.kind == "mirror" || self.kind == "commit",
            "commit_top" => self.kind == "commit",
            "copy-on-read" => self.kind == "stream",
            _ => false,
        }
    }
}

/// Whether the volume's device has another node in it than the volume's own. That is cheaper to ask
/// than what it is.
///
/// # Errors
/// QEMU does not reply.
pub(crate) async fn is_covered(
    qmp: &mut Qmp,
    id: &VolumeId,
    device: bool,
) -> Result<bool, QmpError> {
    if !device {
        return Ok(false);
    }
    let path = format!("/machine/peripheral/{}", id.device());
    let drive: String = qmp.query("qom-get", json!({"path": path, "property": "drive"})).await?;
    Ok(drive != id.node())
}

/// Awaits an event after which a user may be gone. Returns false at `deadline`, or if the
/// connection has ended.
pub(crate) async fn changed(qmp: &mut Qmp, deadline: Deadline) -> bool {
    let is_one = |event: &Event| EVENTS.contains(&event.name.as_str());
    while let Some(event) = qmp.next_event(deadline).await {
        if is_one(&event) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef";

    fn users(below: &[(&str, &str, &str)], jobs: &[&str], exports: &[&str]) -> Vec<String> {
        let job = |kind: &&str| Job {
            id: format!("{kind}1"),
            kind: (*kind).to_owned(),
            status: "running".to_owned(),
        };
        let export = |node: &&str| Export {
            id: "e1".to_owned(),
            kind: "nbd".to_owned(),
            node_name: (*node).to_owned(),
            shutting_down: false,
        };
        let all = NodeUsers {
            drivers: below
                .iter()
                .map(|(name, driver, _)| (name.to_string(), driver.to_string()))
                .collect(),
            below: below
                .iter()
                .map(|(name, _, on)| (name.to_string(), vec![on.to_string()]))
                .collect(),
            jobs: jobs.iter().map(job).collect(),
            exports: exports.iter().map(export).collect(),
        };
        let id = VolumeId::parse(ID).unwrap();
        let users = all.of(&id);
        assert_eq!(all.check(&id).is_ok(), users.is_empty());
        users.iter().map(ToString::to_string).collect()
    }

    const N: &str = "ecrblk-0123456789abcdef-n";
    const FILE: (&str, &str, &str) = (N, "raw", "#file");

    #[test]
    fn the_graph_has_what_is_on_top_of_a_node_and_others_besides() {
        let graph = r#"{"edges": [
            {"name": "file", "parent": 3, "child": 2, "perm": []}, {"parent": 4, "child": 3},
            {"parent": 9, "child": 3}], "nodes": [
            {"id": 2, "type": "block-driver", "name": "file"},
            {"id": 3, "type": "block-driver", "name": "node"},
            {"id": 4, "type": "block-driver", "name": "top"},
            {"id": 9, "type": "block-backend", "name": "node"}]}"#;
        let below = serde_json::from_str::<Graph>(graph).unwrap().below();
        let mut below: Vec<_> = below.into_iter().collect();
        below.sort_unstable();
        let one = |name: &str, on: &str| (name.to_owned(), vec![on.to_owned()]);
        assert_eq!(below, [("file".into(), vec![]), one("node", "file"), one("top", "node")]);
    }

    #[test]
    fn a_job_is_found_by_its_filter_node() {
        let none: [&str; 0] = [];
        assert_eq!(users(&[FILE], &["mirror"], &[]), none, "a job on another node");
        let mirror = [FILE, ("#f", "mirror_top", N)];
        assert_eq!(
            users(&mirror, &["backup", "mirror"], &[]),
            ["block job mirror1 (mirror, running)"]
        );
        let backup = [FILE, ("#f", "copy-before-write", N)];
        assert_eq!(users(&backup, &["backup"], &[]), ["block job backup1 (backup, running)"]);
    }

    #[test]
    fn nodes_on_top_and_exports_of_any_of_them_are_users() {
        let none: [&str; 0] = [];
        let chain = [FILE, ("snap", "qcow2", N), ("top", "raw", "snap")];
        let nodes = ["block node snap (qcow2)", "block node top (raw)"];
        assert_eq!(users(&chain, &[], &[]), nodes);
        for node in ["#file", N, "top"] {
            let found = users(&chain, &[], &[node]);
            assert_eq!(found[2..], ["export e1 (nbd, active)"], "{node}");
        }
        assert_eq!(users(&[FILE], &[], &["other"]), none);
    }
}
