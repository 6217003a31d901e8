//! The volumes of one sandbox, by the verbs of `ecr-runtime`.

use std::{
    ffi::OsString,
    fs::File,
    io::{Seek, SeekFrom},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use host_trigger::{
    Error,
    command_line::in_process::{AuditTrail, ChangingVerb, Done},
    commands::{
        hot_plug::HotPlug,
        hot_unplug::HotUnplug,
        list::{self, List},
        resize::Resize,
        stats::{self, Stats},
        throttle::Throttle,
    },
    ops::volume::ListedVolume,
    output::{report::Report, stats_report::VolumeStats},
};
use tracing::error;

use super::{
    found_volume::FoundVolume,
    host::{AttachedVolume, Failure},
    request::Request,
    verb::{parse, word},
};
use crate::{error::chain, resource::Mount};

/// A sandbox.
#[derive(Debug, Clone)]
pub(super) struct SandboxVolumes {
    pub(super) sandbox: String,
    pub(super) run_dir: Option<PathBuf>,
    pub(super) timeout: Duration,
    pub(super) audit: AuditTrail,
}

impl SandboxVolumes {
    /// The words that every verb is given.
    fn words(&self) -> Vec<OsString> {
        let timeout = format!("{}ms", self.timeout.as_millis());
        vec![word("--sandbox", &self.sandbox), word("--timeout", timeout)]
    }

    /// All volumes. That the guest cannot tell about one of them is a part of the list.
    ///
    /// # Errors
    /// QEMU cannot be asked.
    pub(super) async fn list(&self) -> Result<Vec<ListedVolume>, Failure> {
        let done = async { list::run(&parse::<List>(self.words())?, self.run_dir.clone()).await };
        let listed = done.await.map_err(|e: Error| Failure::from(&e))?;
        Ok(listed.body.volumes)
    }

    /// Attaches `source`.
    ///
    /// # Errors
    /// It is not attached.
    pub(super) async fn plug(
        &self,
        container: &str,
        source: &Path,
        request: &Request,
    ) -> Result<AttachedVolume, Failure> {
        let mut words = self.words();
        words.extend([word("--container", container), word("--block-volume", source)]);
        match &request.mount {
            Some(mount) => words.extend(mount_words(mount)),
            None => words.push(word("--device-path", &request.path)),
        }
        if request.read_only {
            words.push("--read-only".into());
        }
        words.extend(limits(request).filter(|(_, limit)| *limit > 0).map(limit_word));
        let plugged = self.run::<HotPlug>(words).await?;
        let Some(volume) = plugged.volumes.into_iter().next() else {
            return Err(Failure::later("Unexpected", "hot-plug reports no volume"));
        };
        Ok(AttachedVolume {
            id: volume.id,
            guest_device: volume.guest_device,
            size: volume.size,
            ..AttachedVolume::default()
        })
    }

    /// Gives an attached volume the size of its source, if that has grown, and its limits.
    ///
    /// # Errors
    /// It stays as it is.
    pub(super) async fn adjust(
        &self,
        found: FoundVolume,
        source: &Path,
        request: &Request,
    ) -> Result<AttachedVolume, Failure> {
        let attached = found.attached();
        if found.limits() != (request.iops, request.bytes_per_second) {
            let mut words = self.selected(&found)?;
            words.extend(limits(request).map(limit_word));
            self.run::<Throttle>(words).await?;
        }
        let has_grown = size_of(source).is_some_and(|size| size > found.size());
        // QEMU has a size that was never reported: a resize was interrupted, and the guest may not
        // have followed.
        let was_interrupted = request.reported_size.is_some_and(|size| size < found.size());
        match (has_grown || was_interrupted, request.read_only) {
            (true, false) => self.resize(&found, attached).await,
            (true, true) => {
                let note = "it has grown, and keeps its size here: a volume that can only be read \
                            is not resized; detach it, and attach it again";
                Ok(AttachedVolume { note: Some(note.to_owned()), ..attached })
            }
            (false, _) => Ok(attached),
        }
    }

    /// Has the guest follow the size of the source, and grow a file system that is mounted.
    /// Returns what is `attached` then.
    ///
    /// # Errors
    /// It stays as it is.
    pub(super) async fn resize(
        &self,
        found: &FoundVolume,
        mut attached: AttachedVolume,
    ) -> Result<AttachedVolume, Failure> {
        let resized = self.run::<Resize>(self.selected(found)?).await?;
        if let Some(volume) = resized.volumes.first() {
            attached.size = volume.size;
        }
        if let (Some(file_system), Some(grown)) = (&mut attached.file_system, resized.file_system) {
            // It is 0 if the guest could not ask the file system.
            let size = i64::try_from(grown.capacity_bytes).ok().filter(|size| *size > 0);
            file_system.size = size.unwrap_or(file_system.size);
            if !grown.not_grown.is_empty() {
                attached.note = Some(format!("its file system did not grow: {}", grown.not_grown));
            }
        }
        Ok(attached)
    }

    /// Detaches a volume from its container.
    ///
    /// # Errors
    /// It is not detached.
    pub(super) async fn unplug(
        &self,
        found: &FoundVolume,
        by_force: bool,
        patience: Duration,
    ) -> Result<(), Failure> {
        let mut words = self.selected(found)?;
        if by_force {
            words.push("--force".into());
        } else if !patience.is_zero() {
            words.push(word("--wait", format!("{}ms", patience.as_millis())));
        }
        self.run::<HotUnplug>(words).await?;
        Ok(())
    }

    /// The counters of all volumes.
    ///
    /// # Errors
    /// QEMU cannot be asked.
    pub(super) async fn statistics(&self) -> Result<Vec<VolumeStats>, Failure> {
        let done = async { stats::run(&parse::<Stats>(self.words())?, self.run_dir.clone()).await };
        Ok(done.await.map_err(|e: Error| Failure::from(&e))?.body.volumes)
    }

    /// Runs a verb that changes something, with audit records.
    async fn run<V: Args + ChangingVerb>(&self, words: Vec<OsString>) -> Result<Report, Failure> {
        let verb = parse::<V>(words.clone()).map_err(|e| Failure::from(&e))?;
        let Done { result, lost } = self.audit.run(&verb, words, self.run_dir.clone()).await;
        if let Some(e) = lost {
            // What the verb did stays done.
            error!(verb = V::NAME, error = chain(&e), "an audit record was lost");
        }
        Ok(result.map_err(|e| Failure::from(&e))?.body)
    }

    /// The words that name `found`.
    fn selected(&self, found: &FoundVolume) -> Result<Vec<OsString>, Failure> {
        let id = found.id().ok_or_else(|| {
            Failure::later("Incomplete", "QEMU has no record of the volume: repair the sandbox")
        })?;
        let mut words = self.words();
        words.push(word("--volume", id.as_str()));
        // The record of an incomplete volume may be lost.
        if !found.container().is_empty() {
            words.push(word("--container", found.container()));
        }
        Ok(words)
    }
}

fn mount_words(mount: &Mount) -> Vec<OsString> {
    let mut words = vec![word("--mount-path", &mount.path)];
    words.extend(mount.fs_type.iter().map(|kind| word("--fs-type", kind)));
    words.extend(mount.options.iter().map(|option| word("--mount-options", option)));
    words.extend(mount.fs_group.iter().map(|group| word("--fs-group", group.to_string())));
    let policy = mount.fs_group_change_policy.iter();
    words.extend(policy.map(|policy| word("--fs-group-change-policy", format!("{policy:?}"))));
    words
}

fn limits(request: &Request) -> impl Iterator<Item = (&'static str, u64)> {
    [("--iops", request.iops), ("--bps", request.bytes_per_second)].into_iter()
}

fn limit_word((flag, limit): (&'static str, u64)) -> OsString {
    word(flag, limit.to_string())
}

/// The size of a block device or an image. It is not known of one that cannot be opened; what is
/// wrong with it shows when it is plugged.
fn size_of(source: &Path) -> Option<u64> {
    File::open(source).ok()?.seek(SeekFrom::End(0)).ok()
}

#[cfg(test)]
mod tests {
    use host_trigger::fs_group::FsGroupChange;

    use super::*;

    #[test]
    fn a_mount_is_asked_for_in_the_words_of_the_command_line() {
        let mount = Mount {
            path: "/data".to_owned(),
            fs_type: Some("ext4".to_owned()),
            options: vec!["noatime".to_owned(), "commit=5".to_owned()],
            fs_group: Some(7),
            fs_group_change_policy: Some(FsGroupChange::OnRootMismatch),
        };
        let mut words = mount_words(&mount);
        words.extend([word("--container", "c1"), word("--block-volume", "/dev/vg/a")]);
        let verb = parse::<HotPlug>(words).unwrap();
        assert_eq!(verb.volumes.paths[0].path, "/data");
        assert!(verb.volumes.paths[0].is_mount);
        assert_eq!(verb.mount.fs_type.as_deref(), Some("ext4"));
        assert_eq!(verb.mount.mount_options, ["noatime", "commit=5"]);
        assert_eq!(verb.mount.fs_group, Some(7));
        assert_eq!(verb.mount.fs_group_change_policy, Some(FsGroupChange::OnRootMismatch));
    }
}
