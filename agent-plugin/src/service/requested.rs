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
    pub(crate) mount_paths: Vec<&'a str>,
    pub(crate) volumes: Vec<Volume<'a>>,
    pub(crate) timeout_ms: u64,
    pub(crate) wait_ms: u64,
    pub(crate) force: bool,
    pub(crate) holders: bool,
    pub(crate) without_stats: bool,
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
    pub(crate) mount: Option<Mount<'a>>,
}

#[derive(Debug, Default)]
pub(crate) struct Mount<'a> {
    pub(crate) file_system: &'a str,
    pub(crate) options: Vec<&'a str>,
    pub(crate) fs_group: Option<FsGroup>,
}

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct FsGroup {
    pub(crate) gid: u32,
    pub(crate) change: i32,
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
    pub(crate) mounted: Option<Mounted<'a>>,
}

#[derive(Debug, Default)]
pub(crate) struct Mounted<'a> {
    pub(crate) file_system: &'a str,
    pub(crate) idmapped: bool,
    pub(crate) owners_changed: u64,
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
                (Rpc::Probe, 3, value) => value.add_text(&mut request.mount_paths)?,
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
                (Rpc::Inspect, 3, value) => value.flag(&mut request.without_stats)?,
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
                (11, Value::Bytes(bytes)) => self.mount.get_or_insert_default().merge(bytes)?,
                _ => {}
            }
        }
        Ok(())
    }
}

impl<'a> Mount<'a> {
    fn merge(&mut self, bytes: &'a [u8]) -> Result<(), Malformed> {
        let mut fields = Fields::of(bytes);
        while let Some(field) = fields.next()? {
            match field {
                (1, value) => value.text(&mut self.file_system)?,
                (2, value) => value.add_text(&mut self.options)?,
                (3, Value::Bytes(bytes)) => self.fs_group.get_or_insert_default().merge(bytes)?,
                _ => {}
            }
        }
        Ok(())
    }
}

impl FsGroup {
    fn merge(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        let mut fields = Fields::of(bytes);
        while let Some(field) = fields.next()? {
            match field {
                (1, value) => value.small(&mut self.gid)?,
                (2, value) => value.choice(&mut self.change)?,
                _ => {}
            }
        }
        Ok(())
    }
}

impl<'a> Mounted<'a> {
    fn merge(&mut self, bytes: &'a [u8]) -> Result<(), Malformed> {
        let mut fields = Fields::of(bytes);
        while let Some(field) = fields.next()? {
            match field {
                (1, value) => value.text(&mut self.file_system)?,
                (2, value) => value.flag(&mut self.idmapped)?,
                (3, value) => value.number(&mut self.owners_changed)?,
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
                (8, Value::Bytes(bytes)) => self.mounted.get_or_insert_default().merge(bytes)?,
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
mod tests;
