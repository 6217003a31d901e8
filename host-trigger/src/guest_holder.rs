//! Who holds a volume in the guest, as the guest tells it ([`Holder`] of the contract): for people
//! in a few words, for programs in JSON. The names are those of processes and paths that a
//! container chose: escaped and bounded.

use std::fmt;

use block_volume_api::block_volume::Holder;
use serde::{Deserialize, Serialize};

use crate::printable::printable;

/// The most that are taken from one reply.
const MOST: usize = 256;
/// The most that a message for people names.
const MOST_NAMED: usize = 5;

/// One of those who hold a volume, or who lost it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestHolder {
    /// `process`, `mount`, `dm`, `md`, `loop`, `swap`, `device` or `unknown`.
    pub kind: String,
    /// The process; of a mount, one that sees it.
    pub pid: Option<u32>,
    /// Its name.
    pub command: String,
    /// The container that it is in; empty where it is in none that can be told.
    pub container: String,
    /// The path that is open, the mount point, or the device.
    pub detail: String,
}

impl GuestHolder {
    /// Those of a reply.
    pub(crate) fn all(reply: &[Holder]) -> Vec<Self> {
        let one = |holder: &Holder| Self {
            kind: printable(&holder.kind),
            pid: (holder.pid != 0).then_some(holder.pid),
            command: printable(&holder.command),
            container: printable(&holder.container_id),
            detail: printable(&holder.detail),
        };
        reply.iter().take(MOST).map(one).collect()
    }

    /// The first few, on one line.
    pub(crate) fn line(holders: &[Self]) -> String {
        let mut named: Vec<_> = holders.iter().take(MOST_NAMED).map(Self::to_string).collect();
        if holders.len() > MOST_NAMED {
            named.push(format!("and {} more", holders.len() - MOST_NAMED));
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
            // As much as people need; the whole of it is in the JSON form.
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

    fn told(kind: &str, pid: u32, container: &str, detail: &str) -> Holder {
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
    #[case("unknown", 0, "", "nobody to be seen", "nobody to be seen")]
    #[case("pro\u{1b}[2J", 1, "", "\n", "pro\\u{1b}[2J \\n")]
    fn people_read_who_and_where(
        #[case] kind: &str,
        #[case] pid: u32,
        #[case] container: &str,
        #[case] detail: &str,
        #[case] text: &str,
    ) {
        assert_eq!(GuestHolder::all(&[told(kind, pid, container, detail)])[0].to_string(), text);
    }

    #[test]
    fn a_reply_and_a_line_have_an_end() {
        let many = GuestHolder::all(&vec![told("loop", 0, "", "loop0"); 1000]);
        assert_eq!(many.len(), 256);
        let line = GuestHolder::line(&many);
        assert!(line.starts_with("loop loop0; ") && line.ends_with("; and 251 more"), "{line}");
    }

    #[test]
    fn the_json_form_is_stable() {
        let holders =
            GuestHolder::all(&[told("process", 57, "c1", "/dev/xvda"), told("md", 0, "", "md127")]);
        let expected = concat!(
            r#"[{"kind":"process","pid":57,"command":"dd","container":"c1","detail":"/dev/xvda"},"#,
            r#"{"kind":"md","pid":null,"command":"dd","container":"","detail":"md127"}]"#
        );
        assert_eq!(serde_json::to_string(&holders).unwrap(), expected);
        assert_eq!(serde_json::from_str::<Vec<GuestHolder>>(expected).unwrap(), holders);
    }
}
