//! The holders of a volume in the guest, as the guest reports them ([`Holder`] of the API): in a
//! few words for people, as JSON for programs. Names of processes and paths are chosen by
//! containers, so they are escaped and bounded.

use std::fmt;

use block_volume_api::block_volume::Holder;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::sanitize::sanitize;

/// The maximum number of holders that are taken from one reply.
const MAX_HOLDERS: usize = 256;
/// The maximum number of holders that a message for people names.
const MAX_NAMED: usize = 5;

/// A holder of a volume, or one that lost the volume by `hot-unplug --force`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GuestHolder {
    /// `process`, `mount`, `dm`, `md`, `loop`, `swap`, `device` or `unknown`.
    pub kind: String,
    /// The process; of a mount, a process that sees it.
    pub pid: Option<u32>,
    /// The name of the process.
    pub command: String,
    /// The container of the process; empty if it is in none that is known.
    pub container: String,
    /// The open path, the mount point, or the device.
    pub detail: String,
}

impl GuestHolder {
    /// Converts the holders of a reply.
    pub(crate) fn from_reply(reply: &[Holder]) -> Vec<Self> {
        let one = |holder: &Holder| Self {
            kind: sanitize(&holder.kind),
            pid: (holder.pid != 0).then_some(holder.pid),
            command: sanitize(&holder.command),
            container: sanitize(&holder.container_id),
            detail: sanitize(&holder.detail),
        };
        reply.iter().take(MAX_HOLDERS).map(one).collect()
    }

    /// Names the first few on one line.
    pub(crate) fn line(holders: &[Self]) -> String {
        let mut named: Vec<_> = holders.iter().take(MAX_NAMED).map(Self::to_string).collect();
        if holders.len() > MAX_NAMED {
            named.push(format!("and {} more", holders.len() - MAX_NAMED));
        }
        named.join("; ")
    }
}

impl fmt::Display for GuestHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, pid, command, container, detail } = self;
        match (kind.as_str(), pid) {
            ("process", Some(pid)) => write!(f, "process {pid} ({command})")?,
            ("unknown", _) => f.write_str(detail)?,
            _ => write!(f, "{kind} {detail}")?,
        }
        if !container.is_empty() {
            // Enough for people; the JSON form has all of it.
            write!(f, " in container {}", container.chars().take(12).collect::<String>())?;
        } else if kind == "mount" || kind == "process" {
            f.write_str(" outside of containers")?;
        }
        if kind == "process" {
            write!(f, ", {detail}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn holder(kind: &str, pid: u32, container: &str, detail: &str) -> Holder {
        Holder {
            kind: kind.into(),
            pid,
            command: "dd".into(),
            container_id: container.into(),
            detail: detail.into(),
            ..Default::default()
        }
    }

    #[rstest]
    #[case(
        "process",
        57,
        "0123456789abcdef",
        "/dev/xvda",
        "process 57 (dd) in container 0123456789ab, /dev/xvda"
    )]
    #[case("process", 57, "", "/dev/sda", "process 57 (dd) outside of containers, /dev/sda")]
    #[case("mount", 9, "c1", "/mnt (ext4)", "mount /mnt (ext4) in container c1")]
    #[case("mount", 0, "", "/mnt (ext4)", "mount /mnt (ext4) outside of containers")]
    #[case("dm", 0, "", "dm-0 (vg-lv)", "dm dm-0 (vg-lv)")]
    #[case("unknown", 0, "", "no holder can be seen", "no holder can be seen")]
    #[case("pro\u{1b}[2J", 1, "", "\n", "pro\\u{1b}[2J \\n")]
    fn people_read_who_and_where(
        #[case] kind: &str,
        #[case] pid: u32,
        #[case] container: &str,
        #[case] detail: &str,
        #[case] text: &str,
    ) {
        assert_eq!(
            GuestHolder::from_reply(&[holder(kind, pid, container, detail)])[0].to_string(),
            text
        );
    }

    #[test]
    fn a_reply_and_a_line_are_bounded() {
        let many = GuestHolder::from_reply(&vec![holder("loop", 0, "", "loop0"); 1000]);
        assert_eq!(many.len(), 256);
        let line = GuestHolder::line(&many);
        assert!(line.starts_with("loop loop0; ") && line.ends_with("; and 251 more"), "{line}");
    }

    #[test]
    fn the_json_form_is_stable() {
        let holders = GuestHolder::from_reply(&[
            holder("process", 57, "c1", "/dev/xvda"),
            holder("md", 0, "", "md127"),
        ]);
        let expected = concat!(
            r#"[{"kind":"process","pid":57,"command":"dd","container":"c1","detail":"/dev/xvda"},"#,
            r#"{"kind":"md","pid":null,"command":"dd","container":"","detail":"md127"}]"#
        );
        assert_eq!(serde_json::to_string(&holders).unwrap(), expected);
        assert_eq!(serde_json::from_str::<Vec<GuestHolder>>(expected).unwrap(), holders);
    }
}
