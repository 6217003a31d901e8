//! Requests as they arrive over vsock. An accepted request is within every limit of the protocol; a
//! refused one gets a message that is safe to print. The first byte selects the method, the rest is
//! the message.

#![no_main]

use std::collections::HashSet;

use agent_plugin::{
    api::block_volume::{Attachment, Detachment, Reason},
    fuzz::{Request, check, is_request},
};
use libfuzzer_sys::fuzz_target;
use protobuf::Message;
use serde_json::Value;

fuzz_target!(|input: &[u8]| {
    let Some((&method, message)) = input.split_first() else { return };
    // Whatever the bytes are: the service has a decoder of its own.
    let _ = is_request(message);
    let Some(request) = decoded(method, message) else { return };
    match check(&request) {
        Ok(asked) => assert_bounded(&request, &asked),
        Err(failure) => {
            assert_eq!(failure.reason, Reason::REASON_INVALID_REQUEST.into());
            assert!(failure.undone && failure.message.len() < 600, "{failure:?}");
            assert!(!failure.message.chars().any(char::is_control), "{failure:?}");
        }
    }
});

fn decoded(method: u8, message: &[u8]) -> Option<Request> {
    Some(match method {
        b'p' => Request::Probe(Message::parse_from_bytes(message).ok()?),
        b'a' => Request::Attach(Message::parse_from_bytes(message).ok()?),
        b'd' => Request::Detach(Message::parse_from_bytes(message).ok()?),
        b'i' => Request::Inspect(Message::parse_from_bytes(message).ok()?),
        b'r' => Request::Resize(Message::parse_from_bytes(message).ok()?),
        b'P' => Request::Plug(Message::parse_from_bytes(message).ok()?),
        _ => return None,
    })
}

fn assert_bounded(request: &Request, asked: &Value) {
    let of = |list: &[Detachment]| {
        list.iter().map(|item| item.attachment.clone().unwrap_or_default()).collect()
    };
    let (attachments, timeout): (Vec<Attachment>, u64) = match request {
        Request::Probe(request) => {
            request.paths.iter().for_each(|path| assert_plain(path));
            assert!(request.paths.len() <= 256 && request.container_id.len() <= 128);
            return assert_eq!(asked["paths"], Value::from(request.paths.clone()));
        }
        Request::Attach(request) => (request.attachments.clone(), request.timeout_ms),
        Request::Resize(request) => (request.attachments.clone(), request.timeout_ms),
        Request::Plug(request) => {
            assert!(request.conversation != 0);
            (request.attachments.clone(), request.timeout_ms)
        }
        Request::Detach(request) => {
            assert!(request.wait_ms <= request.timeout_ms);
            assert_eq!(asked["force"], request.force);
            (of(&request.detachments), request.timeout_ms)
        }
        Request::Inspect(request) => (of(&request.attachments), 1),
    };
    assert!((1..=600_000).contains(&timeout) && (1..=256).contains(&attachments.len()));
    let serials: HashSet<_> = attachments.iter().map(|item| &item.serial).collect();
    assert_eq!(serials.len(), attachments.len(), "{attachments:?}");
    let asked = asked["attachments"].as_array().expect("a list");
    assert_eq!(asked.len(), attachments.len(), "the policy gets all of them");
    attachments.iter().zip(asked).for_each(|(item, asked)| assert_kept(item, asked));
}

/// Asserts that the policy's input is what was requested, and that it is within the limits.
fn assert_kept(item: &Attachment, asked: &Value) {
    let simple = |text: &str, others: &[u8]| {
        text.bytes().all(|byte| byte.is_ascii_alphanumeric() || others.contains(&byte))
    };
    assert!((1..=128).contains(&item.container_id.len()) && simple(&item.container_id, b"_.-"));
    assert!(!item.container_id.starts_with(['.', '-', '_']));
    assert!((1..=20).contains(&item.serial.len()) && simple(&item.serial, b"_-"));
    assert!(item.controller.len() <= 32 && simple(&item.controller, b":."));
    assert!(item.size > 0 && item.size.is_multiple_of(512) && item.mode <= 0o777);
    assert!(item.uid != u32::MAX && item.gid != u32::MAX);
    let address = item.address.as_ref().expect("an address");
    assert!(address.target <= 255 && (1..=255).contains(&address.lun));
    assert_plain(&item.path);

    assert_eq!(asked["container_id"], item.container_id);
    assert_eq!(asked["serial"], item.serial);
    assert_eq!(asked["path"], item.path);
    assert_eq!(asked["size"], item.size);
    assert_eq!((&asked["target"], &asked["lun"]), (&address.target.into(), &address.lun.into()));
    assert_eq!((&asked["uid"], &asked["gid"]), (&item.uid.into(), &item.gid.into()));
    assert_eq!(asked["mode"], item.mode);
    let controller = asked["controller"].as_str().unwrap_or_default();
    assert!(controller.eq_ignore_ascii_case(&item.controller));
    let access = if item.access.value() == 1 { "read-write" } else { "read-only" };
    assert_eq!(asked["access"], access);
}

fn assert_plain(path: &str) {
    assert!(path.starts_with('/') && path.len() <= 4096 && !path.contains('\0'), "{path:?}");
    let mut parts = path[1..].split('/');
    assert!(parts.all(|part| !matches!(part, "" | "." | "..") && part.len() <= 255), "{path:?}");
    let name = path.rsplit('/').next();
    assert!(name.is_some_and(|name| !name.starts_with(".ecrblk-")), "{path:?}");
}
