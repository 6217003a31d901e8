//! For an auditor: one line for each operation, whatever came of it
//! ([`tracing`](https://docs.rs/tracing) events at level info). What a caller or a container chose
//! is escaped and bounded.

use std::time::Instant;

use crate::{
    api::block_volume::{self as wire, Attachment as Asked},
    reply,
    volume::{Arrival, Attached, Attachment, Failed},
};

/// The most volumes of a refused request that are named.
const MOST: usize = 8;
/// The most bytes of each of their fields.
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

/// Volumes that were worked on: serial, container and path, access.
pub(crate) fn volumes<'a>(list: impl Iterator<Item = &'a Attachment>) -> String {
    let one = |Attachment { serial, container_id, path, access, .. }: &Attachment| {
        format!("{serial} {container_id}:{:?} {access:?}", path.as_str())
    };
    list.map(one).collect::<Vec<_>>().join(", ")
}

/// The same of volumes that were attached, with the guest's devices.
pub(crate) fn attached(arrivals: &[Arrival], attached: &[Attached]) -> String {
    let one = |arrival: &Arrival| {
        let volume = volumes(std::iter::once(&arrival.attachment));
        match attached.iter().find(|attached| attached.serial == arrival.attachment.serial) {
            Some(Attached { guest_device, outcome, .. }) => {
                format!("{volume} {guest_device} ({})", outcome.device)
            }
            None => volume,
        }
    };
    arrivals.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Volumes as they were asked for, by a request that may not be valid.
pub(crate) fn asked<'a>(mut list: impl Iterator<Item = &'a Asked>) -> String {
    let one = |Asked { serial, container_id, path, access, .. }: &Asked| {
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

/// A name that nobody has checked.
pub(crate) fn escaped(text: &str) -> String {
    cut(text).escape_debug().to_string()
}

/// Its beginning.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(LONGEST)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(serial: &str, path: &str) -> Asked {
        Asked {
            serial: serial.into(),
            container_id: "c1".into(),
            path: path.into(),
            ..Default::default()
        }
    }

    #[test]
    fn what_was_asked_for_is_named_whatever_it_is() {
        let list = [attachment("a\nb", "/dev/\u{1b}[2J")];
        assert_eq!(asked(list.iter()), r#"a\nb c1:"/dev/\u{1b}[2J" ?"#);
        assert_eq!(escaped("ä\u{202e}"), r"ä\u{202e}");
    }

    #[test]
    fn a_line_has_an_end() {
        let list = vec![attachment(&"s".repeat(1 << 20), &"ä".repeat(1 << 20)); 1000];
        let line = asked(list.iter());
        assert!(line.len() < 2000 && line.ends_with(", and 992 more"), "{line}");
    }
}
