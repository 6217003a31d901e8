//! The report of `node`: the runtime classes and whether their sandboxes have a second monitor, and
//! which files were written or removed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    envelope::{Envelope, Outcome},
    table,
};
use crate::sanitize::sanitize;

/// How Kata is configured on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeReport {
    /// The runtime classes of Kata's, by name, as they are after the command.
    pub runtime_classes: Vec<ReportedClass>,
    /// The files and directories that were written or removed, in this order.
    pub files: Vec<FileChange>,
    /// Commands that give a configuration a directory of its own, where that is needed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<String>,
}

/// A runtime class of Kata's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReportedClass {
    /// Its name, the handler of a Kubernetes RuntimeClass; empty for a configuration that the
    /// runtime uses by default, where no runtime class was found.
    pub name: String,
    /// Kata's runtime.
    pub runtime: ReportedRuntime,
    /// The configuration, without links; absent if it does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<String>,
    /// The hypervisor; empty if it is not known.
    pub hypervisor: String,
    /// QEMU's path in the configuration and its drop-ins, without that of `node enable`; absent for
    /// another hypervisor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The wrapper that Kata starts; absent if it starts none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wrapper: Option<String>,
    /// Whether Kata starts the wrapper.
    pub state: ClassState,
    /// What keeps `node enable` from changing it, or what else there is to know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Kata's runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReportedRuntime {
    /// The Go runtime.
    Go,
    /// The Rust runtime.
    Rust,
}

/// Whether Kata starts the wrapper for a runtime class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClassState {
    /// It does, by the drop-in of `node enable`.
    Enabled,
    /// It does, by a configuration or a drop-in that an administrator wrote.
    ByHand,
    /// It does not, and `node enable` can change that.
    Disabled,
    /// It does not, and `node enable` refuses to change that: see `why`.
    Refused,
    /// Its hypervisor is not QEMU.
    NotQemu,
    /// Its configuration does not exist.
    NoConfiguration,
}

/// A file or directory that was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileChange {
    /// Its path.
    pub path: String,
    /// What was done.
    pub change: Change,
}

/// What was done to a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It was made.
    Written,
    /// It was removed.
    Removed,
}

/// Formats a report for people.
pub(crate) fn human(envelope: &Envelope<NodeReport>) -> String {
    let NodeReport { runtime_classes, files, commands } = &envelope.body;
    let head = ["CLASS", "RUNTIME", "HYPERVISOR", "STATE", "PATH", "CONFIGURATION"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(runtime_classes.iter().map(|class| {
        let ReportedClass { name, runtime, configuration, hypervisor, path, state, .. } = class;
        let runtime = match runtime {
            ReportedRuntime::Go => "go",
            ReportedRuntime::Rust => "rust",
        };
        let state = match state {
            ClassState::Enabled => "enabled",
            ClassState::ByHand => "by hand",
            ClassState::Disabled => "disabled",
            ClassState::Refused => "refused",
            ClassState::NotQemu => "not QEMU",
            ClassState::NoConfiguration => "no configuration",
        };
        let text = |text: &Option<String>| sanitize(text.as_deref().unwrap_or_default());
        let (path, configuration) = (text(path), text(configuration));
        [
            sanitize(name),
            runtime.to_owned(),
            sanitize(hypervisor),
            state.to_owned(),
            path,
            configuration,
        ]
    }));
    let mut lines = table::table(rows);
    for class in runtime_classes {
        let name = if class.name.is_empty() { "default" } else { &class.name };
        lines.extend(class.why.iter().map(|why| format!("{}: {}", sanitize(name), sanitize(why))));
    }
    let dry_run = envelope.dry_run;
    for FileChange { path, change } in files {
        let what = match (change, dry_run) {
            (Change::Written, false) => "written",
            (Change::Written, true) => "would be written",
            (Change::Removed, false) => "removed",
            (Change::Removed, true) => "would be removed",
        };
        lines.push(format!("{what}: {}", sanitize(path)));
    }
    match (envelope.result, dry_run) {
        (Outcome::Enabled, false) => lines.push(
            "new sandboxes have a second QMP socket; running ones stay as they are".to_owned(),
        ),
        (Outcome::Disabled, false) => lines.push(
            "new sandboxes have no second QMP socket; running ones keep theirs until they end"
                .to_owned(),
        ),
        (Outcome::Unchanged, _) => lines.push("nothing had to be changed".to_owned()),
        _ => {}
    }
    lines.extend(commands.iter().map(|line| sanitize(line)));
    lines.join("\n")
}

#[cfg(test)]
#[path = "node_report_tests.rs"]
mod tests;
