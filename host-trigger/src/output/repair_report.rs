//! What `repair` prints: what it found of each volume and what it did, a line each.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::envelope::Envelope;
use crate::{
    ops::{
        place::Place,
        recovery::{Action, StateAfter},
        volume::State,
    },
    pod::PodView,
    sanitize::sanitize,
};

/// The volumes of a sandbox, and what was done about them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RepairReport {
    /// Every volume of which anything was found, by ID; then unused descriptors.
    pub volumes: Vec<RepairedVolume>,
}

/// One attachment of a volume, or a descriptor that nothing uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct RepairedVolume {
    /// The volume ID; empty for a descriptor that belongs to no volume.
    pub id: String,
    /// The container that the record names.
    pub container: String,
    /// The pod, and the container's name in it, as far as they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodView>,
    /// The path that the record names: `device_path`, or `mount_path` and how it is mounted.
    #[serde(flatten)]
    pub place: Place,
    /// The real path of the source on the host.
    pub source: String,
    /// What was found.
    #[serde(flatten)]
    pub found: Found,
    /// What was done; in a dry run, what would be done.
    pub action: Action,
    /// The state afterwards.
    pub state_after: StateAfter,
    /// Why it was done, or why it could not be.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Found {
    /// A volume in this state.
    Volume(State),
    /// A descriptor of ours in QEMU that nothing uses.
    Descriptor(UnusedDescriptor),
}

/// The state of a descriptor that nothing uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum UnusedDescriptor {
    /// Nothing uses it.
    UnusedDescriptor,
}

impl Found {
    fn text(self) -> &'static str {
        match self {
            Self::Volume(state) => state.text(),
            Self::Descriptor(UnusedDescriptor::UnusedDescriptor) => "unused descriptor",
        }
    }
}

fn action_text(action: Action, dry_run: bool) -> &'static str {
    match (action, dry_run) {
        (Action::Completed, false) => "completed",
        (Action::Completed, true) => "would complete",
        (Action::RolledBack, false) => "rolled back",
        (Action::RolledBack, true) => "would roll back",
        (Action::Kept, _) => "kept",
        (Action::Failed, _) => "failed",
    }
}

fn state_text(state: StateAfter) -> &'static str {
    match state {
        StateAfter::Attached => "attached",
        StateAfter::Gone => "gone",
        StateAfter::Unknown => "unknown",
    }
}

/// The report for people.
pub(crate) fn human(envelope: &Envelope<RepairReport>) -> String {
    let volumes = envelope.body.volumes.iter();
    let mut lines: Vec<_> = volumes.map(|volume| line(volume, envelope.dry_run)).collect();
    if lines.is_empty() {
        lines.push("there are no volumes".to_owned());
    }
    lines.join("\n")
}

fn line(volume: &RepairedVolume, dry_run: bool) -> String {
    let id = if volume.id.is_empty() { "no volume" } else { volume.id.as_str() };
    let at = match volume.container.as_str() {
        "" => String::new(),
        container => {
            let path = sanitize(volume.place.path());
            format!(" at {path} in container {}", sanitize(container))
        }
    };
    let detail = match volume.detail.as_str() {
        "" => String::new(),
        detail => format!(" ({})", sanitize(detail)),
    };
    let (found, action) = (volume.found.text(), action_text(volume.action, dry_run));
    match volume.action {
        Action::Kept | Action::Failed => format!("{id}{at}: {found}: {action}{detail}"),
        _ => {
            format!("{id}{at}: {found}: {action}, {}{detail}", state_text(volume.state_after))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ops::volume::Cause,
        output::envelope::{Outcome, Timings},
    };

    fn report() -> Envelope<RepairReport> {
        let volume = RepairedVolume {
            id: "0123456789abcdef".into(),
            container: "c1".into(),
            pod: None,
            place: Place::Device { device_path: "/dev/\u{1b}".into() },
            source: "/dev/sdb".into(),
            found: Found::Volume(State::Stale { cause: Cause::ContainerGone }),
            action: Action::RolledBack,
            state_after: StateAfter::Gone,
            detail: "its container is gone".into(),
        };
        let descriptor = RepairedVolume {
            id: String::new(),
            container: String::new(),
            pod: None,
            place: Place::default(),
            source: String::new(),
            found: Found::Descriptor(UnusedDescriptor::UnusedDescriptor),
            action: Action::RolledBack,
            state_after: StateAfter::Unknown,
            detail: String::new(),
        };
        let report = RepairReport { volumes: vec![volume, descriptor] };
        Envelope {
            dry_run: true,
            timings_us: Some(Timings(vec![("total".into(), 7)])),
            ..Envelope::new("repair", Outcome::Repaired, report)
        }
    }

    #[test]
    fn the_json_form_is_stable() {
        let expected = concat!(
            r#"{"schema":1,"command":"repair","result":"repaired","dry_run":true,"volumes":[{"id":"0123456789abcdef","#,
            r#""container":"c1","device_path":"/dev/\u001b","source":"/dev/sdb","state":"stale","#,
            r#""cause":"container_gone","action":"rolled_back","state_after":"gone","detail":"its container is gone"},"#,
            r#"{"id":"","container":"","device_path":"","source":"","state":"unused_descriptor","#,
            r#""action":"rolled_back","state_after":"unknown"}],"timings_us":{"total":7}}"#
        );
        assert_eq!(serde_json::to_string(&report()).unwrap(), expected);
        assert_eq!(serde_json::from_str::<Envelope<RepairReport>>(expected).unwrap(), report());
    }

    #[test]
    fn people_read_a_line_for_each() {
        let expected = "0123456789abcdef at /dev/\\u{1b} in container c1: stale: container gone: \
                        would roll back, gone (its container is gone)\n\
                        no volume: unused descriptor: would roll back, unknown";
        assert_eq!(human(&report()), expected);
        let done = Envelope { dry_run: false, ..report() };
        assert!(human(&done).contains(": rolled back, gone"));
        let body = RepairReport { volumes: Vec::new() };
        assert_eq!(human(&Envelope { body, ..report() }), "there are no volumes");
    }
}
