//! `block-volume resize`: QEMU and the guest follow a volume that grew, or a raw image is grown by
//! QEMU
//! ([`block_resize`](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html#command-QMP-block-core.block_resize)).
//!
//! 1. Before anything changes: find the volume, open its source for a look (is it still the one
//!    that was plugged?), and have the guest read the size that QEMU has: it then surely can
//!    follow, and may.
//! 2. `block_resize`. QEMU changes the length of an image through the descriptor that it has: no
//!    path is followed, and it cannot be another file. Of a block device it takes the real size.
//! 3. The guest reads the size again until it is QEMU's.
//!
//! A guest that does not follow: an image that this very call has grown gets its length back,
//! unless the guest may have used it.

use std::{path::PathBuf, time::Duration};

use block_volume_api::block_volume::{Attachment, Detachment, ResizeRequest};
use clap::Args;
use serde_json::json;

use crate::{
    Deadline, Error, agent, choice,
    cli::{Target, Which},
    fault,
    limits::Limits,
    lock,
    output::{Outcome, Report, SCHEMA, Timings},
    reach::{Guest, Reached},
    record::Access,
    registry::Registry,
    sandbox::Place,
    signals::Signals,
    size::parse_size,
    source::{Kind, Source},
    stopwatch::Stopwatch,
    survey::{self, Subject},
    undo,
    volume::VolumeId,
};
use block_volume_qmp::Qmp;

/// QEMU's block layer goes no further.
const LARGEST: u64 = 0x7fff_ffff_c000_0000;
/// The guest's answer may be this much later than its own deadline.
const REPLY_GRACE: Duration = Duration::from_secs(2);

/// Makes QEMU, the guest and the container see a volume's new size
///
/// Without --size the size that the volume has on the host now is taken: grow a block device there
/// first. With --size a raw image is grown. The volume stays in use meanwhile; a file system on it
/// is grown afterwards, in the container (resize2fs, xfs_growfs). Success means that the guest's
/// kernel has the new size.
#[derive(Debug, Args)]
pub struct Resize {
    /// How to reach the sandbox.
    #[command(flatten)]
    pub target: Target,

    /// The container's id, or the start of it; only a volume of this container is meant
    #[arg(long, value_name = "ID")]
    pub container: Option<String>,

    /// Which volume.
    #[command(flatten)]
    pub which: Which,

    /// The new size of a raw image, in bytes or such as 10GiB [default: the size on the host now]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = parse_new_size)]
    pub size: Option<u64>,

    /// Also makes it smaller; what is beyond the new end is lost
    #[arg(long)]
    pub allow_shrink: bool,

    /// Only checks what can be checked, and says what would be done; changes nothing
    #[arg(long)]
    pub dry_run: bool,
}

fn parse_new_size(text: &str) -> Result<u64, String> {
    match parse_size(text, LARGEST)? {
        0 => Err("a volume cannot be empty".to_owned()),
        size if !size.is_multiple_of(512) => Err("it is not a multiple of 512 bytes".to_owned()),
        size => Ok(size),
    }
}

/// Runs the verb.
///
/// # Errors
/// The volume has its old size; unless it is [`Error::Incomplete`], nothing has changed.
pub async fn run(verb: &Resize, run_dir: Option<PathBuf>) -> Result<Report, Error> {
    let mut watch = Stopwatch::new();
    let deadline = Deadline::after(verb.target.timeout);
    let mut signals = Signals::catch()?;
    choice::check(&verb.which)?;
    let place = Place::find(&verb.target.search(run_dir, verb.container.as_deref())?)?;
    watch.lap("find");
    let _lock = signals.unless_caught(lock::acquire(&place.lock_directory(), deadline)).await?;
    watch.lap("lock");
    let (mut resizing, subject) = signals.unless_caught(prepare(verb, &place, deadline)).await?;
    watch.lap("prepare");

    let work = async {
        if verb.dry_run { resizing.outlook().await } else { resizing.run(&mut watch).await }
    };
    let done = signals.unless_caught(work).await;
    let (unchanged, size) = match done {
        Ok(done) => done,
        Err(cause) => {
            return Err(tokio::select! {
                error = resizing.take_back(cause) => error,
                interrupted = signals.next() => Error::Incomplete {
                    cause: Box::new(interrupted),
                    left: vec!["a second signal ended the undo".to_owned()],
                },
            });
        }
    };
    let mut volume = subject.volume;
    volume.size = size;
    Ok(Report {
        schema: SCHEMA,
        command: "resize".to_owned(),
        result: match unchanged {
            true => Outcome::Unchanged,
            false if verb.dry_run => Outcome::WouldResize,
            false => Outcome::Resized,
        },
        volumes: vec![volume],
        broke: Vec::new(),
        timings_us: Timings(watch.finish()),
    })
}

/// All that can be known before anything is changed.
async fn prepare<'a>(
    verb: &Resize,
    place: &'a Place,
    deadline: Deadline,
) -> Result<(Resizing<'a>, Subject), Error> {
    let (mut qmp, registry, guest) = Reached::new(place, deadline).await?.split();
    let known = choice::find(&verb.which, verb.container.as_deref(), place, &registry)?;
    let id = known.id.clone();
    let (Some(before), Some(used)) = (known.presence.plugged(), known.used.as_ref()) else {
        return Err(Error::HalfPlugged { volume: id.to_string() });
    };
    let source = Source::open(used.intent.source.as_ref(), true)?;
    if VolumeId::derive(&place.sandbox, &source.identity) != id {
        return Err(Error::SourceReplaced { path: source.given });
    }
    let after = new_size(verb, &id, &source, before)?;
    if after != before && used.intent.access == Access::ReadOnly {
        return Err(Error::ResizeReadOnly { volume: id.to_string() });
    }
    let mut subject = Subject::new(&mut qmp, &registry, &place.sandbox, known).await?;
    subject.volume.throttle = Limits::read(&mut qmp).await?.remove(&id).unwrap_or_default();
    let guest = guest.await?;
    // A volume that is committed has a placement, and with it a question.
    let question = subject.question.clone().unwrap_or_default();
    // Nobody but QEMU has written what this call adds.
    let can_go_back = source.kind == Kind::File && source.size == before && after > before;
    let path = source.given;
    let resizing = Resizing {
        place,
        deadline,
        qmp,
        guest,
        id,
        path,
        question,
        before,
        after,
        can_go_back,
        touched: false,
    };
    Ok((resizing, subject))
}

/// What the volume is to have, where QEMU has `before`.
fn new_size(verb: &Resize, id: &VolumeId, source: &Source, before: u64) -> Result<u64, Error> {
    let asked = verb.size.unwrap_or(source.size);
    // An image may have been grown by others than QEMU: that would be lost as well.
    let present = if source.kind == Kind::File { before.max(source.size) } else { before };
    if asked < present && !verb.allow_shrink {
        return Err(Error::WouldShrink { volume: id.to_string(), asked, present });
    }
    if source.kind != Kind::File && asked != source.size {
        return Err(Error::DeviceSize { path: source.given.clone(), asked, size: source.size });
    }
    Ok(asked)
}

/// The resize of one volume.
struct Resizing<'a> {
    place: &'a Place,
    deadline: Deadline,
    qmp: Qmp,
    guest: Guest,
    id: VolumeId,
    path: PathBuf,
    question: Detachment,
    before: u64,
    after: u64,
    can_go_back: bool,
    /// QEMU may have been told.
    touched: bool,
}

impl Resizing<'_> {
    /// What [`run`](Self::run) would say; the guest is only looked at.
    async fn outlook(&self) -> Result<(bool, u64), Error> {
        match self.size_in_guest(self.deadline).await? {
            Some(size) => Ok((size == self.after && self.before == self.after, self.after)),
            None => Err(Error::HalfPlugged { volume: self.id.to_string() }),
        }
    }

    /// Was all as it should be already, and what is the size?
    async fn run(&mut self, watch: &mut Stopwatch) -> Result<(bool, u64), Error> {
        let had_it = self.resize_in_guest(self.before).await?;
        watch.lap("ask_guest");
        if self.after == self.before {
            return Ok((had_it, self.before));
        }
        self.touched = true;
        self.resize_in_qemu(self.after).await?;
        fault::point("after-block-resize").await?;
        let size = self.size_in_qemu().await?;
        watch.lap("block_resize");
        self.resize_in_guest(size).await?;
        fault::point("after-guest-resize").await?;
        watch.lap("guest");
        Ok((false, size))
    }

    /// Had the guest this size before?
    async fn resize_in_guest(&self, size: u64) -> Result<bool, Error> {
        let remaining = self.deadline.remaining();
        let time = (remaining - (remaining / 4).min(undo::LEAST_TIME)).min(agent::LONGEST_REQUEST);
        let reply_by =
            Deadline::after(time + REPLY_GRACE).min(Deadline::after((time + remaining) / 2));
        let attachment =
            Attachment { size, ..self.question.attachment.clone().unwrap_or_default() };
        let request = ResizeRequest {
            attachments: vec![attachment],
            timeout_ms: agent::timeout_ms(time),
            ..Default::default()
        };
        let reply = self.guest.agent.resize(&request, reply_by).await?;
        match &reply.resized[..] {
            [resized] if resized.serial == self.id.as_str() && resized.size == size => {
                Ok(resized.unchanged)
            }
            _ => Err(Error::AgentAnswer {
                method: "Resize",
                what: "another volume or size".to_owned(),
            }),
        }
    }

    async fn resize_in_qemu(&mut self, size: u64) -> Result<(), Error> {
        let resized = self
            .qmp
            .execute("block_resize", json!({"node-name": self.id.node(), "size": size}))
            .await;
        match resized {
            // The file system of the image has a limit, or no room for what it keeps of a longer
            // file.
            Err(e)
                if e.refusal().is_some_and(|text| {
                    text.contains("too large") || text.contains("No space")
                }) =>
            {
                Err(Error::ImageLimit { path: self.path.clone(), size, source: e })
            }
            resized => Ok(resized.map(drop)?),
        }
    }

    async fn size_in_qemu(&mut self) -> Result<u64, Error> {
        let mut registry = Registry::read(&mut self.qmp).await?;
        registry.read_nodes(&mut self.qmp).await?;
        let gone = || Error::HalfPlugged { volume: self.id.to_string() };
        registry.presence(&self.id).node.ok_or_else(gone)
    }

    /// Undoes what may have been done, where that is safe; returns the error to tell.
    async fn take_back(&mut self, cause: Error) -> Error {
        if !self.touched {
            return cause;
        }
        let deadline = self.deadline.max(Deadline::after(undo::LEAST_TIME));
        match self.go_back(deadline).await {
            Ok(None) => cause,
            Ok(Some(left)) => Error::Incomplete { cause: Box::new(cause), left: vec![left] },
            Err(e) => {
                let left = format!("volume {}: {}", self.id, e.message());
                Error::Incomplete { cause: Box::new(cause), left: vec![left] }
            }
        }
    }

    /// What is left; `None`: nothing.
    async fn go_back(&mut self, deadline: Deadline) -> Result<Option<String>, Error> {
        self.qmp.set_deadline(deadline);
        if !self.qmp.is_usable() {
            self.qmp.close();
            match undo::reconnect(self.place, deadline).await? {
                Some(qmp) => self.qmp = qmp,
                // With QEMU the VM is gone, and an image has the length that it has.
                None => {
                    return Ok(Some(format!("QEMU is gone; look at the size of {:?}", self.path)));
                }
            }
        }
        let now = self.size_in_qemu().await?;
        if now == self.before {
            return Ok(None);
        }
        let left = format!("QEMU has volume {} with {now} bytes, the guest may not", self.id);
        if !self.can_go_back || self.size_in_guest(deadline).await? != Some(self.before) {
            return Ok(Some(left));
        }
        self.resize_in_qemu(self.before).await?;
        Ok((self.size_in_qemu().await? != self.before).then_some(left))
    }

    async fn size_in_guest(&self, deadline: Deadline) -> Result<Option<u64>, Error> {
        let seen = survey::inspect(&self.guest.agent, &self.question, false, deadline).await?;
        Ok(seen.disk_present.then_some(seen.size))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("1MiB", Ok(1 << 20))]
    #[case("9223372035781033984", Ok(LARGEST))]
    #[case("0", Err("cannot be empty"))]
    #[case("0GiB", Err("cannot be empty"))]
    #[case("513", Err("multiple of 512"))]
    #[case("-1MiB", Err("negative"))]
    #[case("8EiB", Err("more than"))]
    #[case("9223372036854775808", Err("more than"))]
    #[case("big", Err("expected bytes"))]
    fn sizes_are_checked(#[case] text: &str, #[case] expected: Result<u64, &str>) {
        match (parse_new_size(text), expected) {
            (Ok(size), Ok(expected)) => assert_eq!(size, expected),
            (Err(error), Err(why)) => assert!(error.contains(why), "{error}"),
            other => panic!("{other:?}"),
        }
    }
}
