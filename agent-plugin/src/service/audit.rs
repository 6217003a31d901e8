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
    use std::{
        fmt,
        sync::{Arc, Mutex},
    };

    use tracing::{Event, Metadata, Subscriber, field, span};

    use super::*;
    use crate::error::Error;

    /// A log that writes text as it is.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<String>>);

    impl field::Visit for Log {
        fn record_str(&mut self, field: &field::Field, value: &str) {
            self.0.lock().unwrap().push_str(&format!("{field}={value} "));
        }

        fn record_debug(&mut self, field: &field::Field, value: &dyn fmt::Debug) {
            self.record_str(field, &format!("{value:?}"));
        }
    }

    impl Subscriber for Log {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }
        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn event(&self, event: &Event<'_>) {
            event.record(&mut self.clone());
            self.0.lock().unwrap().push('\n');
        }
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    #[test]
    fn a_path_of_a_container_adds_no_line_and_no_escape_sequence_to_the_log() {
        let path = "/dev/a\n\u{1b}[2Jdetach done\r";
        let source = std::io::Error::from_raw_os_error(libc::EMLINK);
        let error = Error::System { call: "mkdirat", subject: path.into(), source };
        let left = Error::NodeMoved { path: path.into() };
        let failed = Failed { left: vec![left], ..Failed::from(error) };
        let lines = Log::default();
        tracing::subscriber::with_default(lines.clone(), || {
            super::log("attach", "about", Instant::now(), Some(&failed));
        });
        let lines = lines.0.lock().unwrap();
        let shown = r"/dev/a\n\u{1b}[2Jdetach done\r";
        assert_eq!(lines.matches(shown).count(), 2, "{lines}");
        assert_eq!(lines.chars().filter(|shown| shown.is_control()).count(), 1, "{lines:?}");
    }

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
