//! The audit log: one line per request, successful or not
//! ([`tracing`](https://docs.rs/tracing) events at level info). Text that a caller or a container
//! chose is escaped and bounded.

use std::time::Instant;

use super::{reply, requested::Request};
use crate::{
    api::block_volume::Access,
    text::{append, displayed},
    volume::{Attached, Attachment, Failed},
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
            let (reason, undone) = (failure.reason, failure.undone);
            let serial = failure.serial;
            tracing::info!(operation, %about, millis, ?reason, serial, undone, message = failure.message);
        }
    }
}

/// Adds a volume that was worked on: serial, container and path, access.
pub(crate) fn add(about: &mut String, attachment: &Attachment) {
    let Attachment { serial, container_id, path, access, mount, .. } = attachment;
    let separator = if about.is_empty() { "" } else { ", " };
    let path = path.as_str();
    let mount = if mount.is_some() { " mount" } else { "" };
    append(about, format_args!("{separator}{serial} {container_id}:{path:?} {access:?}{mount}"));
}

/// Adds where the guest has it.
pub(crate) fn add_attached(about: &mut String, attached: &Attached) {
    append(about, format_args!(" {} ({})", attached.guest_device, attached.outcome.device));
}

/// Describes what was requested, by a request that may not be valid.
pub(crate) fn requested(request: &Request<'_>) -> String {
    if request.volumes.is_empty() {
        return escaped(request.container_id);
    }
    let attachments = || request.volumes.iter().filter_map(|volume| volume.attachment.as_ref());
    let mut text = String::new();
    for (index, attachment) in attachments().take(MOST).enumerate() {
        const READ_WRITE: i32 = Access::ACCESS_READ_WRITE as i32;
        const READ_ONLY: i32 = Access::ACCESS_READ_ONLY as i32;
        let access = match attachment.access {
            READ_WRITE => "ReadWrite",
            READ_ONLY => "ReadOnly",
            _ => "?",
        };
        let separator = if index == 0 { "" } else { ", " };
        let (serial, path) = (escaped(attachment.serial), cut(attachment.path));
        let container_id = escaped(attachment.container_id);
        append(&mut text, format_args!("{separator}{serial} {container_id}:{path:?} {access}"));
    }
    let more = attachments().count().saturating_sub(MOST);
    if more > 0 {
        append(&mut text, format_args!(", and {more} more"));
    }
    text
}

/// Escapes a name that was not checked.
pub(crate) fn escaped(text: &str) -> String {
    displayed(&cut(text).escape_debug())
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

    use super::{
        super::requested::{self, Volume},
        *,
    };
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
        let mut failed = Failed::from(error);
        failed.left.push(left.into());
        let lines = Log::default();
        tracing::subscriber::with_default(lines.clone(), || {
            super::log("attach", "about", Instant::now(), Some(&failed));
        });
        let lines = lines.0.lock().unwrap();
        let shown = r"/dev/a\n\u{1b}[2Jdetach done\r";
        assert_eq!(lines.matches(shown).count(), 2, "{lines}");
        assert_eq!(lines.chars().filter(|shown| shown.is_control()).count(), 1, "{lines:?}");
    }

    fn request<'a>(count: usize, serial: &'a str, path: &'a str) -> Request<'a> {
        let attachment =
            || requested::Attachment { serial, container_id: "c1", path, ..Default::default() };
        let volume = || Volume { attachment: Some(attachment()), ..Default::default() };
        Request { volumes: (0..count).map(|_| volume()).collect(), ..Default::default() }
    }

    #[test]
    fn a_request_is_described_whatever_it_contains() {
        let request = request(1, "a\nb", "/dev/\u{1b}[2J");
        assert_eq!(super::requested(&request), r#"a\nb c1:"/dev/\u{1b}[2J" ?"#);
        assert_eq!(escaped("ä\u{202e}"), r"ä\u{202e}");
    }

    #[test]
    fn the_length_of_a_line_is_bounded() {
        let (serial, path) = ("s".repeat(1 << 20), "ä".repeat(1 << 20));
        let line = super::requested(&request(1000, &serial, &path));
        assert!(line.len() < 2000 && line.ends_with(", and 992 more"), "{line}");
    }
}
