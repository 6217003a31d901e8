//! A request as it arrived: decoded, not checked. It borrows its text from the call.

use super::{
    message::{Fields, Malformed, Value},
    rpc::Rpc,
};

/// A request of any method. A field that the method does not have is empty.
#[derive(Debug, Default)]
pub(crate) struct Request<'a> {
    pub(crate) container_id: &'a str,
    pub(crate) paths: Vec<&'a str>,
    pub(crate) volumes: Vec<Volume<'a>>,
    pub(crate) timeout_ms: u64,
    pub(crate) wait_ms: u64,
    pub(crate) force: bool,
    pub(crate) holders: bool,
    pub(crate) conversation: u64,
}

/// A message of the caller in a Plug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PlugStep<'a> {
    /// With the bytes of the request.
    Start(&'a [u8]),
    Go,
    Commit,
    /// None of these: a step of a later version, or nothing.
    Other,
}

impl<'a> PlugStep<'a> {
    /// # Errors
    /// The bytes are not a message.
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<PlugStep<'a>, Malformed> {
        let mut step = PlugStep::Other;
        let mut fields = Fields::of(bytes);
        while let Some(field) = fields.next()? {
            step = match field {
                (1, Value::Bytes(start)) => PlugStep::Start(start),
                (2, Value::Bytes(_)) => PlugStep::Go,
                (3, Value::Bytes(_)) => PlugStep::Commit,
                _ => step,
            };
        }
        Ok(step)
    }
}

/// A volume of a request: what the API calls an attachment or a detachment.
#[derive(Debug, Default)]
pub(crate) struct Volume<'a> {
    /// Absent in a detachment that has none, which is refused.
    pub(crate) attachment: Option<Attachment<'a>>,
    pub(crate) outcome: Option<Outcome<'a>>,
    pub(crate) keep_disk: bool,
    pub(crate) keep_right: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Attachment<'a> {
    pub(crate) container_id: &'a str,
    pub(crate) controller: &'a str,
    pub(crate) address: Option<Pair>,
    pub(crate) serial: &'a str,
    pub(crate) size: u64,
    pub(crate) path: &'a str,
    pub(crate) access: i32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Outcome<'a> {
    pub(crate) device: Option<Pair>,
    pub(crate) node: i32,
    pub(crate) filter: i32,
    pub(crate) parents_made: Vec<&'a str>,
    pub(crate) allowed_before: bool,
    pub(crate) container_started: u64,
    pub(crate) errors_before: u64,
}

/// A SCSI address or a device number: a message of two numbers.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pair(pub(crate) u32, pub(crate) u32);

impl<'a> Request<'a> {
    /// # Errors
    /// The bytes are not the method's message.
    pub(crate) fn decode(rpc: Rpc, bytes: &'a [u8]) -> Result<Request<'a>, Malformed> {
        let mut request = Request::default();
        let mut fields = Fields::of(bytes);
        while let Some((number, value)) = fields.next()? {
            match (rpc, number, value) {
                (Rpc::Probe, 1, value) => value.text(&mut request.container_id)?,
                (Rpc::Probe, 2, value) => value.add_text(&mut request.paths)?,
                (Rpc::Attach | Rpc::Plug | Rpc::Resize, 1, Value::Bytes(bytes)) => {
                    let mut attachment = Attachment::default();
                    attachment.merge(bytes)?;
                    let attachment = Some(attachment);
                    request.volumes.push(Volume { attachment, ..Volume::default() });
                }
                (Rpc::Detach | Rpc::Inspect, 1, Value::Bytes(bytes)) => {
                    request.volumes.push(Volume::detachment(bytes)?);
                }
                (Rpc::Inspect, 2, value) => value.flag(&mut request.holders)?,
                (Rpc::Attach | Rpc::Plug | Rpc::Detach | Rpc::Resize, 2, value) => {
                    value.number(&mut request.timeout_ms)?;
                }
                (Rpc::Hold, 1, value) | (Rpc::Plug, 3, value) => {
                    value.number(&mut request.conversation)?;
                }
                (Rpc::Detach, 3, value) => value.flag(&mut request.force)?,
                (Rpc::Detach, 4, value) => value.number(&mut request.wait_ms)?,
                _ => {}
            }
        }
        Ok(request)
    }
}

// A message that comes twice in a field for one is merged, as the format demands.

impl<'a> Volume<'a> {
    fn detachment(bytes: &'a [u8]) -> Result<Volume<'a>, Malformed> {
        let mut volume = Volume::default();
        let mut fields = Fields::of(bytes);
        while let Some(field) = fields.next()? {
            match field {
                (1, Value::Bytes(bytes)) => {
                    volume.attachment.get_or_insert_default().merge(bytes)?;
                }
                (2, Value::Bytes(bytes)) => volume.outcome.get_or_insert_default().merge(bytes)?,
                (3, value) => value.flag(&mut volume.keep_disk)?,
                (4, value) => value.flag(&mut volume.keep_right)?,
                _ => {}
            }
        }
        Ok(volume)
    }
}

impl<'a> Attachment<'a> {
    fn merge(&mut self, bytes: &'a [u8]) -> Result<(), Malformed> {
        let mut fields = Fields::of(bytes);
        while let Some(field) = fields.next()? {
            match field {
                (1, value) => value.text(&mut self.container_id)?,
                (2, value) => value.text(&mut self.controller)?,
                (3, Value::Bytes(bytes)) => self.address.get_or_insert_default().merge(bytes)?,
                (4, value) => value.text(&mut self.serial)?,
                (5, value) => value.number(&mut self.size)?,
                (6, value) => value.text(&mut self.path)?,
                (7, value) => value.choice(&mut self.access)?,
                (8, value) => value.small(&mut self.uid)?,
                (9, value) => value.small(&mut self.gid)?,
                (10, value) => value.small(&mut self.mode)?,
                _ => {}
            }
        }
        Ok(())
    }
}

impl<'a> Outcome<'a> {
    fn merge(&mut self, bytes: &'a [u8]) -> Result<(), Malformed> {
        let mut fields = Fields::of(bytes);
        while let Some(field) = fields.next()? {
            match field {
                (1, Value::Bytes(bytes)) => self.device.get_or_insert_default().merge(bytes)?,
                (2, value) => value.choice(&mut self.node)?,
                (3, value) => value.choice(&mut self.filter)?,
                (4, value) => value.add_text(&mut self.parents_made)?,
                (5, value) => value.flag(&mut self.allowed_before)?,
                (6, value) => value.number(&mut self.container_started)?,
                (7, value) => value.number(&mut self.errors_before)?,
                _ => {}
            }
        }
        Ok(())
    }
}

impl Pair {
    fn merge(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        let mut fields = Fields::of(bytes);
        while let Some(field) = fields.next()? {
            match field {
                (1, value) => value.small(&mut self.0)?,
                (2, value) => value.small(&mut self.1)?,
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use protobuf::Message as _;

    use super::*;
    use crate::api::block_volume::{self as wire, plug_request::Step as Wire};

    fn attachment() -> wire::Attachment {
        wire::Attachment {
            container_id: "c1".into(),
            controller: "0000:00:01.0".into(),
            address: Some(wire::ScsiAddress { target: 2, lun: 3, ..Default::default() }).into(),
            serial: "s".into(),
            size: 1 << 40,
            path: "/dev/ä".into(),
            access: wire::Access::ACCESS_READ_ONLY.into(),
            uid: 8,
            gid: u32::MAX,
            mode: 0o660,
            ..Default::default()
        }
    }

    fn assert_decoded(attachment: &Attachment<'_>) {
        let Attachment { container_id, controller, serial, path, .. } = *attachment;
        assert_eq!((container_id, controller, serial, path), ("c1", "0000:00:01.0", "s", "/dev/ä"));
        assert_eq!((attachment.address, attachment.size), (Some(Pair(2, 3)), 1 << 40));
        assert_eq!((attachment.access, attachment.mode), (2, 0o660));
        assert_eq!((attachment.uid, attachment.gid), (8, u32::MAX));
    }

    #[test]
    fn every_field_of_a_detach_is_decoded() {
        let outcome = wire::Outcome {
            device: Some(wire::DeviceNumber { major: 8, minor: 16, ..Default::default() }).into(),
            node: wire::NodeWay::NODE_WAY_BIND.into(),
            filter: wire::FilterMode::FILTER_MODE_BPF.into(),
            parents_made: vec!["/dev/a".into(), String::new()],
            allowed_before: true,
            container_started: 5,
            errors_before: 6,
            ..Default::default()
        };
        let detachment = wire::Detachment {
            attachment: Some(attachment()).into(),
            outcome: Some(outcome).into(),
            keep_disk: true,
            keep_right: true,
            ..Default::default()
        };
        let request = wire::DetachRequest {
            detachments: vec![detachment, wire::Detachment::default()],
            timeout_ms: 7,
            force: true,
            wait_ms: u64::MAX,
            ..Default::default()
        };
        let bytes = request.write_to_bytes().unwrap();
        let request = Request::decode(Rpc::Detach, &bytes).unwrap();
        let (timeout_ms, wait_ms) = (request.timeout_ms, request.wait_ms);
        assert_eq!((timeout_ms, wait_ms, request.force), (7, u64::MAX, true));
        let [first, second] = &request.volumes[..] else { panic!("{request:?}") };
        assert!(first.keep_disk && first.keep_right && !second.keep_disk);
        assert!(second.attachment.is_none() && second.outcome.is_none());
        assert_decoded(first.attachment.as_ref().unwrap());
        let outcome = first.outcome.as_ref().unwrap();
        assert_eq!((outcome.device, outcome.node, outcome.filter), (Some(Pair(8, 16)), 2, 3));
        assert_eq!(
            (&outcome.parents_made[..], outcome.allowed_before),
            (&["/dev/a", ""][..], true)
        );
        assert_eq!((outcome.container_started, outcome.errors_before), (5, 6));
    }

    #[test]
    fn every_field_of_the_other_requests_is_decoded() {
        let attach = wire::AttachRequest {
            attachments: vec![attachment(), attachment()],
            timeout_ms: 7,
            ..Default::default()
        };
        let bytes = attach.write_to_bytes().unwrap();
        for rpc in [Rpc::Attach, Rpc::Resize] {
            let request = Request::decode(rpc, &bytes).unwrap();
            assert_eq!((request.volumes.len(), request.timeout_ms), (2, 7));
            assert_decoded(request.volumes[1].attachment.as_ref().unwrap());
        }
        let detachment =
            wire::Detachment { attachment: Some(attachment()).into(), ..Default::default() };
        let inspect = wire::InspectRequest {
            attachments: vec![detachment],
            holders: true,
            ..Default::default()
        };
        let bytes = inspect.write_to_bytes().unwrap();
        let request = Request::decode(Rpc::Inspect, &bytes).unwrap();
        assert!(request.holders);
        assert_decoded(request.volumes[0].attachment.as_ref().unwrap());
        let probe = wire::ProbeRequest {
            container_id: "c1".into(),
            paths: vec!["/dev/a".into(), String::new()],
            ..Default::default()
        };
        let bytes = probe.write_to_bytes().unwrap();
        let request = Request::decode(Rpc::Probe, &bytes).unwrap();
        assert_eq!((request.container_id, &request.paths[..]), ("c1", &["/dev/a", ""][..]));
    }

    #[test]
    fn every_step_of_a_plug_is_decoded() {
        let start = wire::AttachRequest {
            attachments: vec![attachment()],
            timeout_ms: 7,
            conversation: u64::MAX,
            ..Default::default()
        };
        let bytes = |step| {
            let step = wire::PlugRequest { step, ..Default::default() };
            step.write_to_bytes().unwrap()
        };
        let of_start = bytes(Some(Wire::Start(start)));
        let step = PlugStep::decode(&of_start).unwrap();
        let PlugStep::Start(request) = step else { panic!("{step:?}") };
        let request = Request::decode(Rpc::Plug, request).unwrap();
        assert_eq!((request.timeout_ms, request.conversation), (7, u64::MAX));
        assert_decoded(request.volumes[0].attachment.as_ref().unwrap());
        let (go, commit) =
            (bytes(Some(Wire::Go(wire::PlugGo::default()))), wire::PlugCommit::default());
        let commit = bytes(Some(Wire::Commit(commit)));
        assert_eq!(PlugStep::decode(&go), Ok(PlugStep::Go));
        assert_eq!(PlugStep::decode(&commit), Ok(PlugStep::Commit));
        assert_eq!(PlugStep::decode(&bytes(None)), Ok(PlugStep::Other));
        // A step of a later version.
        assert_eq!(PlugStep::decode(&[0x22, 0]), Ok(PlugStep::Other));
        assert_eq!(PlugStep::decode(&[0x12, 1]), Err(Malformed));
    }

    #[test]
    fn the_number_of_a_hold_is_decoded() {
        let hold = wire::HoldRequest { conversation: 7, ..Default::default() };
        let bytes = hold.write_to_bytes().unwrap();
        assert_eq!(Request::decode(Rpc::Hold, &bytes).unwrap().conversation, 7);
    }

    /// As the generated code does it, for a sender that writes a message in parts.
    #[test]
    fn a_message_in_parts_is_merged() {
        let mut parts = wire::Detachment { keep_disk: true, ..Default::default() };
        parts.attachment = Some(wire::Attachment { size: 512, ..Default::default() }).into();
        let mut bytes = parts.write_to_bytes().unwrap();
        parts.attachment = Some(wire::Attachment { uid: 8, ..Default::default() }).into();
        bytes.extend(parts.write_to_bytes().unwrap());
        let volume = Volume::detachment(&bytes).unwrap();
        let merged = volume.attachment.unwrap();
        assert_eq!((merged.size, merged.uid, volume.keep_disk), (512, 8, true));
    }
}
