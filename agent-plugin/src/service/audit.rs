//! The audit log: one line per request, successful or not
//! ([`tracing`](https://docs.rs/tracing) events at level info). Text that a caller or a container
//! chose is escaped and bounded.

use std::time::Instant;

use crate::{
    api::block_volume::{self as wire, Attachment as Requested},
    service::reply,
    volume::{AttachJob, Attached, Attachment, Failed},
};

/// How many volumes of a refused request are named.
const MOST: usize = 8;
/// How many bytes of each of their fields are shown.
const LONGEST: usize = 64;

/// Writes the line.
pub(crate) fn log(operation: &str, about: &str, began: Instant, failed: Option<&Failed>) {
    let millis = began.elapsed().as_millis();
    match failed {
        None => tracing::info!(operation, %about, millis, "done"),
        Some(failed) => {
            let failure = reply::failure(failed);
            let reason = failure.reason.enum_value_or_default();
            let (serial, undone) = (failure.serial, failure.undone);
            tracing::info!(operation, %about, millis, ?reason, serial, undone, message = failure.message);
        }
    }
}

/// Describes volumes that were worked on: serial, container and path, access.
pub(crate) fn volumes<'a>(list: impl Iterator<Item = &'a Attachment>) -> String {
    let one = |Attachment { serial, container_id, path, access, .. }: &Attachment| {
        format!("{serial} {container_id}:{:?} {access:?}", path.as_str())
    };
    list.map(one).collect::<Vec<_>>().join(", ")
}

/// Describes volumes that were attached, with the guest's devices.
pub(crate) fn attached(jobs: &[AttachJob], attached: &[Attached]) -> String {
    let one = |job: &AttachJob| {
        let volume = volumes(std::iter::once(&job.attachment));
        match attached.iter().find(|attached| attached.serial == job.attachment.serial) {
            Some(Attached { guest_device, outcome, .. }) => {
                format!("{volume} {guest_device} ({})", outcome.device)
            }
            None => volume,
        }
    };
    jobs.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Describes volumes as they were requested, by a request that may not be valid.
pub(crate) fn requested<'a>(mut list: impl Iterator<Item = &'a Requested>) -> String {
    let one = |Requested { serial, container_id, path, access, .. }: &Requested| {
        let access = match access.enum_value() {
            Ok(wire::Access::ACCESS_READ_ONLY) => "ReadOnly",
            Ok(wire::Access::ACCESS_READ_WRITE) => "ReadWrite",
            _ => "?",
        };
        format!("{} {}:{:?} {access}", escaped(serial), escaped(container_id), cut(path))
    };
    let mut named: Vec<_> = list.by_ref().take(MOST).map(one).collect();
    match list.count() {
        0 => {}
        more => named.push(format!("and {more} more")),
    }
    named.join(", ")
}

/// Escapes a name that was not checked.
pub(crate) fn escaped(text: &str) -> String {
    cut(text).escape_debug().to_string()
}

/// The beginning of a text.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(LONGEST)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(serial: &str, path: &str) -> Requested {
        Requested {
            serial: serial.into(),
            container_id: "c1".into(),
            path: path.into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_request_is_described_whatever_it_contains() {
        let list = [attachment("a\nb", "/dev/\u{1b}[2J")];
        assert_eq!(requested(list.iter()), r#"a\nb c1:"/dev/\u{1b}[2J" ?"#);
        assert_eq!(escaped("ä\u{202e}"), r"ä\u{202e}");
    }

    #[test]
    fn the_length_of_a_line_is_bounded() {
        let list = vec![attachment(&"s".repeat(1 << 20), &"ä".repeat(1 << 20)); 1000];
        let line = requested(list.iter());
        assert!(line.len() < 2000 && line.ends_with(", and 992 more"), "{line}");
    }
}
