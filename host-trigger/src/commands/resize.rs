//! `block-volume resize`: QEMU and the guest follow a block device that was resized on the host, or
//! QEMU grows a raw image
//! ([`block_resize`](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html#command-QMP-block-core.block_resize)).
//!
//! 1. Before anything changes: find the volume, open its source to check that it is still the
//!    volume that was attached, and have the guest read the size that it has: this shows that the
//!    guest can follow, and may. For a smaller size, ask it what it uses the volume for.
//! 2. `block_resize`. QEMU changes the length of an image through the descriptor that it has: no
//!    path is followed, so it cannot be another file. Of a block device it takes the real size.
//! 3. The guest reads the size again until it is QEMU's. The errors that the guest's kernel counts
//!    for its probes of the disk are left out of the volume's counter.
//!
//! If the guest does not follow, an image that this very run has grown gets its former length,
//! unless the guest may have used the added part.

use std::path::PathBuf;

use block_volume_api::block_volume::{Attachment, Detachment, ResizeRequest};
use block_volume_qmp::Qmp;
use clap::Args;

use crate::{
    Deadline, Error,
    cli::{selector::VolumeSelector, target::Target},
    fault,
    guest_holder::GuestHolder,
    host::source::{Source, SourceKind},
    ops::{
        commit, disk_size,
        file_system::GrownFileSystem,
        guest_request::RequestTime,
        inspect::VolumeView,
        rollback::resize::ResizeRollback,
        select,
        session::{self, Connections, Guest, Session},
        volume::Volume,
    },
    output::{
        envelope::{Envelope, Outcome},
        report::Report,
    },
    path_text,
    qemu::{
        medium::Drive,
        node_users::NodeUsers,
        record::{Access, CommitRecord},
        volume_state::Attachment as KnownAttachment,
    },
    size::parse_size,
    stopwatch::Stopwatch,
    volume_id::VolumeId,
};

/// The limit of QEMU's block layer.
const MAX_SIZE: u64 = 0x7fff_ffff_c000_0000;

/// Make QEMU, the guest and the container see a volume's new size
///
/// Without --size, the size that the volume has on the host now is used: resize a block device
/// there first. With --size, a raw image is resized. The volume stays in use meanwhile. Success
/// means that the guest's kernel has the new size. If the volume is mounted (--mount-path), the
/// guest grows its file system, too, and both sizes are shown; one that cannot grow while it is
/// mounted stays as it is, and the output says so. Of a device, grow a file system on it in the
/// container afterwards (resize2fs, xfs_growfs).
#[derive(Debug, Args)]
#[command(before_help = "Example: ecr-runtime block-volume resize --sandbox 7d3a --device-path \
                         /dev/xvda --size 20GiB")]
pub struct Resize {
    /// How to reach the sandbox.
    #[command(flatten)]
    pub target: Target,

    /// Container ID or a unique prefix of it; with --pod, the container's name. Only a volume of
    /// this container is meant
    #[arg(long, value_name = "ID")]
    pub container: Option<String>,

    /// Which volume.
    #[command(flatten)]
    pub selector: VolumeSelector,

    /// New size of a raw image, in bytes or such as 10GiB [default: the size on the host now]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = parse_new_size)]
    pub size: Option<u64>,

    /// Allow a smaller size; the data beyond the new end is lost
    #[arg(long)]
    pub allow_shrink: bool,

    /// Check everything that can be checked, and report what would be done; change nothing
    #[arg(long)]
    pub dry_run: bool,
}

fn parse_new_size(text: &str) -> Result<u64, String> {
    match parse_size(text, MAX_SIZE)? {
        0 => Err("a volume cannot be empty".to_owned()),
        size if !size.is_multiple_of(512) => Err("it is not a multiple of 512 bytes".to_owned()),
        size => Ok(size),
    }
}

/// Runs the verb.
///
/// # Errors
/// The volume has its former size; unless it is [`Error::Incomplete`], nothing has changed.
pub async fn run(verb: &Resize, run_dir: Option<PathBuf>) -> Result<Envelope<Report>, Error> {
    verb.selector.check()?;
    let options = verb.target.session(run_dir, verb.container.as_deref())?;
    let (mut session, mut signals) = Session::open(options).await?;
    let (mut work, mut volume) = signals.unless_caught(prepare(verb, &session)).await?;
    session.watch.lap("prepare");

    let watch = &mut session.watch;
    let resized = async { if verb.dry_run { work.dry_run().await } else { work.run(watch).await } };
    let done = signals.unless_caught(resized).await;
    let Resized { unchanged, size, file_system } = match done {
        Ok(done) => done,
        Err(cause) if !work.touched => return Err(cause),
        Err(cause) => {
            let mut rollback = work.rollback(&session);
            return Err(tokio::select! {
                error = rollback.run(cause) => error,
                interrupted = signals.next() => Error::Incomplete {
                    cause: Box::new(interrupted),
                    left: vec!["a second signal ended the rollback".to_owned()],
                },
            });
        }
    };
    // No signal interrupts this: the resize is done.
    if !unchanged && !verb.dry_run {
        work.record(size).await;
    }
    volume.size = size;
    let result = if unchanged { Outcome::Unchanged } else { Outcome::Resized };
    let report = Report { file_system, ..Report::of(vec![volume]) };
    Ok(Envelope::new("resize", result, report)
        .with_dry_run(verb.dry_run)
        .with_timings(session.watch))
}

/// Checks everything that can be known before anything is changed.
async fn prepare(verb: &Resize, session: &Session) -> Result<(Work, Volume), Error> {
    let Session { sandbox, deadline, .. } = session;
    let Connections { mut qmp, inventory, guest } = session::connect(sandbox, *deadline).await?;
    let selection = verb.selector.selection();
    let known = select::one(selection, verb.container.as_deref(), sandbox, &inventory)?;
    let (id, attachments) = (known.id.clone(), known.state.attachments());
    if known.state.is_abandoned {
        return Err(known.abandoned_error());
    }
    let (Some(before), Some(attachment)) = (known.state.attached_size(), known.attachment.as_ref())
    else {
        return Err(Error::IncompleteVolume { volume: id.to_string() });
    };
    let source = path_text::decode(&attachment.intent.source);
    let source = Source::open(&source, true, *deadline).await?;
    if VolumeId::derive(&sandbox.id, &source.identity) != id {
        return Err(Error::SourceReplaced { path: source.given });
    }
    let is_read_only = attachment.intent.access == Access::ReadOnly;
    let mut view = VolumeView::new(&mut qmp, &inventory, &sandbox.id, known).await?;
    view.set_drive(&Drive::read(&mut qmp).await?);
    if let Some(node) = view.volume.moved_to {
        return Err(Error::NodeMoved { volume: id.to_string(), node });
    }
    let guest = guest.await?;
    // A committed volume has a commit record, and with it a request.
    let request = view.request.unwrap_or_default();
    // Not QEMU's size if the guest did not follow an earlier resize.
    let seen = match disk_size::in_guest(&guest.agent, &request, *deadline).await {
        // `Resize` will report what is wrong.
        Err(Error::Guest { .. }) => None,
        seen => seen?,
    };
    let in_guest = seen.map_or(before, |disk| disk.size);
    let after = new_size(verb, &id, &source, before, in_guest)?;
    if after != before && is_read_only {
        return Err(Error::ResizeReadOnly { volume: id.to_string() });
    }
    if after != before {
        NodeUsers::read(&mut qmp).await?.check(&id)?;
    }
    if let (true, Some(mount)) = (after < in_guest, view.volume.place.mount()) {
        let holder = GuestHolder {
            kind: "mount".to_owned(),
            pid: None,
            command: String::new(),
            container: view.volume.container.clone(),
            detail: mount.mount_path.clone(),
        };
        return Err(Error::ShrinkInUse {
            volume: id.to_string(),
            asked: after,
            holders: vec![holder],
        });
    }
    if after < in_guest {
        disk_size::check_unused(&guest.agent, &request, after, *deadline).await?;
    }
    // Only QEMU has written what this run adds.
    let is_revertible = source.kind == SourceKind::File
        && source.size == before
        && in_guest == before
        && after > before;
    let work = Work {
        deadline: *deadline,
        qmp,
        guest,
        id,
        path: source.given,
        request,
        before,
        in_guest,
        after,
        errors: seen.map(|disk| disk.errors),
        attachments,
        is_revertible,
        touched: false,
    };
    Ok((work, view.volume))
}

/// The size that the volume is to have, where QEMU has `before`.
fn new_size(
    verb: &Resize,
    id: &VolumeId,
    source: &Source,
    before: u64,
    in_guest: u64,
) -> Result<u64, Error> {
    let asked = verb.size.unwrap_or(source.size);
    let present = match source.kind {
        // Others than QEMU may have grown it: that part would be lost as well.
        SourceKind::File => before.max(source.size),
        // What the guest never had, it does not lose.
        SourceKind::Block(_) => before.min(in_guest),
    };
    if asked < present && !verb.allow_shrink {
        return Err(Error::WouldShrink { volume: id.to_string(), asked, present });
    }
    if source.kind != SourceKind::File && asked != source.size {
        let path = source.given.clone();
        return Err(Error::DeviceSize { path, asked, size: source.size });
    }
    Ok(asked)
}

/// What came of a resize.
struct Resized {
    /// QEMU and the guest had the size already.
    unchanged: bool,
    size: u64,
    /// Of a mount.
    file_system: Option<GrownFileSystem>,
}

/// The resize of one volume.
struct Work {
    deadline: Deadline,
    qmp: Qmp,
    guest: Guest,
    id: VolumeId,
    path: PathBuf,
    request: Detachment,
    /// QEMU's size.
    before: u64,
    /// The guest's size.
    in_guest: u64,
    after: u64,
    /// The guest's errors before the resize, if they are known.
    errors: Option<u64>,
    /// All attachments of the volume.
    attachments: Vec<KnownAttachment>,
    is_revertible: bool,
    /// QEMU may have been asked to resize.
    touched: bool,
}

impl Work {
    /// What [`run`](Self::run) would return; the guest is only inspected.
    async fn dry_run(&self) -> Result<Resized, Error> {
        match disk_size::in_guest(&self.guest.agent, &self.request, self.deadline).await? {
            Some(disk) => {
                let unchanged = disk.size == self.after && self.before == self.after;
                Ok(Resized { unchanged, size: self.after, file_system: None })
            }
            None => Err(Error::IncompleteVolume { volume: self.id.to_string() }),
        }
    }

    async fn run(&mut self, watch: &mut Stopwatch) -> Result<Resized, Error> {
        // If both are not the same, an earlier resize failed, and the guest may never be able to
        // follow that one.
        let first = if self.after == self.before { self.before } else { self.in_guest };
        let (unchanged, asked) = self.resize_in_guest(first).await?;
        watch.lap("ask_guest");
        if self.after == self.before {
            return Ok(Resized { unchanged, size: self.before, file_system: asked });
        }
        self.touched = true;
        disk_size::set_in_qemu(&mut self.qmp, &self.id, &self.path, self.after).await?;
        fault::point("after-block-resize").await?;
        let size = disk_size::in_qemu(&mut self.qmp, &self.id).await?;
        watch.lap("block_resize");
        let (_, grown) = self.resize_in_guest(size).await?;
        fault::point("after-guest-resize").await?;
        watch.lap("guest");
        // It may have grown already when the guest was asked, after an earlier resize.
        let before = asked.map(|asked| asked.before_bytes);
        let file_system = grown.map(|grown| GrownFileSystem {
            before_bytes: before.unwrap_or(grown.before_bytes),
            ..grown
        });
        Ok(Resized { unchanged: false, size, file_system })
    }

    /// Returns whether the guest had this size before, and what became of a file system.
    async fn resize_in_guest(&self, size: u64) -> Result<(bool, Option<GrownFileSystem>), Error> {
        let RequestTime { timeout_ms, reply_by } = RequestTime::until(self.deadline);
        let attachment = Attachment { size, ..self.request.attachment.clone().unwrap_or_default() };
        let request =
            ResizeRequest { attachments: vec![attachment], timeout_ms, ..Default::default() };
        let reply = self.guest.agent.resize(&request, reply_by).await?;
        match &reply.resized[..] {
            [resized] if resized.serial == self.id.as_str() && resized.size == size => {
                let is_mount = self.request.attachment.mount.is_some();
                Ok((resized.unchanged, is_mount.then(|| GrownFileSystem::from(resized))))
            }
            _ => {
                let what = "another volume or size".to_owned();
                Err(Error::AgentReply { method: "Resize", what })
            }
        }
    }

    /// Records the size, so that an unplug need not read all block nodes to tell it, and from where
    /// errors are counted: the guest's kernel probes a disk again when its size changes, as when it
    /// was new, by commands that the disk need not support. Nothing else depends on either: a
    /// failure is no failure of the resize.
    async fn record(&mut self, size: u64) {
        let disk = disk_size::in_guest(&self.guest.agent, &self.request, self.deadline).await;
        let more = match (self.errors, disk) {
            (Some(before), Ok(Some(after))) => after.errors.saturating_sub(before),
            _ => 0,
        };
        for known in &self.attachments {
            let Some((carrier, before)) = known.committed() else { continue };
            let errors = before.errors.saturating_add(more);
            let size = if size == known.intent.size { 0 } else { size };
            let commit = CommitRecord { errors, size, ..before.clone() };
            if commit != *before {
                let _ = commit::replace(&mut self.qmp, known.set, Some(*carrier), &commit).await;
            }
        }
    }

    fn rollback<'a>(&'a mut self, session: &'a Session) -> ResizeRollback<'a> {
        ResizeRollback {
            sandbox: &session.sandbox,
            deadline: self.deadline,
            qmp: &mut self.qmp,
            agent: &self.guest.agent,
            id: &self.id,
            path: &self.path,
            request: &self.request,
            before: self.before,
            is_revertible: self.is_revertible,
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("1MiB", Ok(1 << 20))]
    #[case("9223372035781033984", Ok(MAX_SIZE))]
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
