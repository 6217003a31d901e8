//! Replies of the agent in the guest, which a container may have compromised. The first byte of the
//! input selects the message: `a` AttachResponse, `i` InspectResponse, `f` Failure.

#![no_main]

use block_volume_api::block_volume::{
    Access, AttachResponse, Attachment, Failure, InspectResponse, ScsiAddress,
};
use host_trigger::{Error, fuzz, qemu::record::Record};
use libfuzzer_sys::fuzz_target;
use protobuf::Message;

const PATH: &str = "/dev/a/b/c/xvda";

fuzz_target!(|input: &[u8]| {
    let Some((&kind, message)) = input.split_first() else { return };
    match kind {
        b'a' => {
            let Ok(reply) = AttachResponse::parse_from_bytes(message) else { return };
            for attached in &reply.attached {
                let access = [Access::ACCESS_READ_WRITE, Access::ACCESS_READ_ONLY]
                    [usize::from(attached.read_only)];
                let request = Attachment {
                    address: Some(ScsiAddress { target: 255, lun: 3, ..Default::default() }).into(),
                    serial: attached.serial.clone(),
                    size: attached.size,
                    path: PATH.into(),
                    access: access.into(),
                    ..Default::default()
                };
                let Ok(commit) = fuzz::commit(&request, attached) else { continue };
                assert_plain(&commit.guest_device);
                let record = Record::Commit(commit);
                let text = record.to_opaque();
                assert!(text.len() < 1 << 14, "{} bytes", text.len());
                assert_eq!(Record::from_opaque(&text), Some(record));
            }
        }
        b'i' => {
            let Ok(reply) = InspectResponse::parse_from_bytes(message) else { return };
            for inspected in &reply.inspected {
                let holders = fuzz::holders(&inspected.holders);
                assert!(holders.len() <= 256);
                holders.iter().for_each(|holder| assert_plain(&holder.to_string()));
            }
        }
        b'f' => {
            let Ok(Failure { reason, message, undone, .. }) = Failure::parse_from_bytes(message)
            else {
                return;
            };
            let reason = reason.enum_value().unwrap_or_default();
            let error = Error::Guest { reason, message, undone, volume: String::new() };
            assert_plain(&error.message());
            assert_ne!(error.class().exit_status.code(), 0);
        }
        _ => {}
    }
});

fn assert_plain(text: &str) {
    assert!(!text.chars().any(char::is_control), "{text:?}");
    assert!(text.chars().count() < 1 << 14);
}
