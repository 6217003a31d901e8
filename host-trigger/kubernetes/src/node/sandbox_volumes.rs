//! The volumes of one sandbox, by the verbs of `ecr-runtime`.

use std::{
    ffi::OsString,
    fs::File,
    io::{Seek, SeekFrom},
    path::{Path, PathBuf},
    time::Duration,
};

use host_trigger::{
    Error,
    commands::{
        hot_plug::{self, HotPlug},
        hot_unplug::{self, HotUnplug},
        list::{self, List},
        resize::{self, Resize},
        throttle::{self, Throttle},
    },
    ops::volume::ListedVolume,
};

use super::{
    found_volume::FoundVolume,
    host::{AttachedVolume, Failure},
    request::Request,
    verb::{parse, word},
};

/// A sandbox.
#[derive(Debug, Clone)]
pub(super) struct SandboxVolumes {
    pub(super) sandbox: String,
    pub(super) run_dir: Option<PathBuf>,
    pub(super) timeout: Duration,
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
        words.extend([
            word("--container", container),
            word("--block-volume", source),
            word("--device-path", &request.device_path),
        ]);
        if request.read_only {
            words.push("--read-only".into());
        }
        words.extend(limits(request).filter(|(_, limit)| *limit > 0).map(limit_word));
        let done = async { hot_plug::run(&parse::<HotPlug>(words)?, self.run_dir.clone()).await };
        let plugged = done.await.map_err(|e: Error| Failure::from(&e))?;
        let Some(volume) = plugged.body.volumes.into_iter().next() else {
            return Err(Failure::later("Unexpected", "hot-plug reports no volume"));
        };
        Ok(AttachedVolume { id: volume.id, guest_device: volume.guest_device, size: volume.size })
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
        let mut attached = found.attached();
        if found.limits() != (request.iops, request.bytes_per_second) {
            let mut words = self.selected(&found)?;
            words.extend(limits(request).map(limit_word));
            let done =
                async { throttle::run(&parse::<Throttle>(words)?, self.run_dir.clone()).await };
            done.await.map_err(|e: Error| Failure::from(&e))?;
        }
        if size_of(source).is_some_and(|size| size > found.size()) {
            let words = self.selected(&found)?;
            let done = async { resize::run(&parse::<Resize>(words)?, self.run_dir.clone()).await };
            let resized = done.await.map_err(|e: Error| Failure::from(&e))?;
            if let Some(volume) = resized.body.volumes.first() {
                attached.size = volume.size;
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
        let done =
            async { hot_unplug::run(&parse::<HotUnplug>(words)?, self.run_dir.clone()).await };
        done.await.map_err(|e: Error| Failure::from(&e))?;
        Ok(())
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
