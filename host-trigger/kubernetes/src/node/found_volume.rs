//! Which of the volumes of a sandbox is that of an attachment.

use std::path::PathBuf;

use host_trigger::{
    ops::{
        file_system::FileSystemUse,
        volume::{ListedVolume, State},
    },
    qemu::throttle::Limit,
    volume_id::VolumeId,
};

use super::host::{AttachedVolume, Failure};
use crate::resource::FileSystemStatus;

/// What is known of the volume before it is looked for.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) path: String,
    /// It is mounted there, and no device.
    pub(super) is_mount: bool,
    /// The ID that was reported.
    pub(super) volume_id: Option<String>,
    /// The IDs that the container has and had, as far as the engine knows them.
    pub(super) containers: Vec<String>,
    /// The real path of the source, which QEMU's record has, if that is known.
    pub(super) source: Option<PathBuf>,
}

/// A volume that was found.
#[derive(Debug, Clone)]
pub(super) struct FoundVolume(ListedVolume);

/// The volume of `place` among all of a sandbox. One that is in the same place but is not known by
/// its ID and has another source is that of another attachment, or of a person. One that is known
/// by its ID may be elsewhere: an API server without CEL lets the path be changed.
pub(super) fn find(all: &[ListedVolume], place: &Place) -> Option<FoundVolume> {
    let is_known = |listed: &ListedVolume| place.volume_id.as_deref() == Some(&listed.volume.id);
    let in_container = |listed: &ListedVolume| {
        let is_stale = matches!(listed.state, State::Stale { .. });
        is_stale || place.containers.contains(&listed.volume.container)
    };
    let is_at = |listed: &ListedVolume| {
        let at = &listed.volume.place;
        at.mount().is_some() == place.is_mount && at.path() == place.path
    };
    let is_own = |listed: &ListedVolume| {
        is_known(listed) || place.source.as_ref() == Some(&listed.volume.source)
    };
    let there = all.iter().find(|it| is_at(it) && is_own(it) && in_container(it));
    there
        .or_else(|| all.iter().find(|it| is_known(it) && in_container(it)))
        .cloned()
        .map(FoundVolume)
}

impl FoundVolume {
    /// Its ID; `None` if QEMU has no valid one.
    pub(super) fn id(&self) -> Option<VolumeId> {
        VolumeId::parse(&self.0.volume.id)
    }

    /// The ID of the container that it was attached to.
    pub(super) fn container(&self) -> &str {
        &self.0.volume.container
    }

    /// Whether it is attached, as a whole, to this container.
    pub(super) fn is_attached_to(&self, container: &str) -> bool {
        self.0.state == State::Attached && self.container() == container
    }

    /// Whether its container has ended.
    pub(super) fn is_stale(&self) -> bool {
        matches!(self.0.state, State::Stale { .. })
    }

    /// Whether the guest could not tell.
    pub(super) fn is_unknown(&self) -> bool {
        matches!(self.0.state, State::Unknown { .. })
    }

    /// The failure of one of which the guest could not tell.
    pub(super) fn unknown(&self) -> Failure {
        let message = match &self.0.guest_error {
            Some(error) => format!("the guest cannot tell about the volume: {}", error.message),
            None => "the guest cannot tell about the volume".to_owned(),
        };
        let message = format!("{message}; it is asked again");
        Failure { reason: "StateUnknown".to_owned(), message, passes: true }
    }

    /// Its size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.0.volume.size
    }

    /// Its limits: operations and bytes per second, 0 without one.
    pub(super) fn limits(&self) -> (u64, u64) {
        let limits = &self.0.volume.throttle;
        let number = |limit: &Option<Limit>| limit.as_ref().map_or(0, |limit| limit.limit);
        (number(&limits.iops), number(&limits.bps))
    }

    /// The volume as it is reported.
    pub(super) fn attached(&self) -> AttachedVolume {
        let volume = &self.0.volume;
        let used = self.0.guest.as_ref().and_then(|guest| guest.file_system.as_ref());
        let note = used.filter(|used| used.read_only && !volume.read_only).map(|_| {
            "the file system refuses writes: the guest's kernel makes it read-only after an error; \
             detach the volume, and repair it with fsck"
                .to_owned()
        });
        let size = |used: &FileSystemUse| i64::try_from(used.capacity_bytes).unwrap_or(i64::MAX);
        AttachedVolume {
            id: volume.id.clone(),
            guest_device: volume.guest_device.clone(),
            size: volume.size,
            file_system: used
                .map(|used| FileSystemStatus { kind: used.kind.clone(), size: size(used) }),
            note,
        }
    }
}

#[cfg(test)]
mod tests {
    use host_trigger::ops::{
        container_state::ContainerState,
        place::{MountPlace, Place as VolumePlace},
        volume::{Cause, GuestView, Volume},
    };
    use rstest::rstest;

    use super::*;

    fn listed(id: &str, container: &str, path: &str, source: &str) -> ListedVolume {
        let volume = Volume {
            id: id.to_owned(),
            container: container.to_owned(),
            place: VolumePlace::Device { device_path: path.to_owned() },
            source: source.into(),
            ..Volume::default()
        };
        ListedVolume { volume, state: State::Attached, guest: None, guest_error: None }
    }

    fn place(volume_id: Option<&str>) -> Place {
        Place {
            path: "/dev/xvda".to_owned(),
            is_mount: false,
            volume_id: volume_id.map(str::to_owned),
            containers: vec!["c1".to_owned(), "c0".to_owned()],
            source: Some(OWN.into()),
        }
    }

    const OWN: &str = "/dev/loop3";

    #[rstest]
    #[case::own_source("v1", "c1", "/dev/xvda", OWN, true)]
    #[case::reported("v2", "c1", "/dev/xvda", "/other", true)]
    #[case::earlier_container("v1", "c0", "/dev/xvda", OWN, true)]
    #[case::other_path("v1", "c1", "/dev/xvdb", OWN, false)]
    #[case::reported_and_path_changed("v2", "c1", "/dev/xvdb", "/other", true)]
    #[case::reported_in_other_container("v2", "c9", "/dev/xvdb", OWN, false)]
    #[case::other_container("v1", "c9", "/dev/xvda", OWN, false)]
    #[case::other_source("v1", "c1", "/dev/xvda", "/dev/loop4", false)]
    fn a_volume_of_another_attachment_is_not_taken(
        #[case] id: &str,
        #[case] container: &str,
        #[case] path: &str,
        #[case] source: &str,
        #[case] found: bool,
    ) {
        let all = [listed(id, container, path, source)];
        assert_eq!(find(&all, &place(Some("v2"))).is_some(), found);
    }

    #[test]
    fn of_a_volume_at_two_paths_the_one_at_the_wanted_path_is_meant() {
        let all = [listed("v2", "c1", "/dev/xvdb", OWN), listed("v2", "c1", "/dev/xvda", OWN)];
        let found = find(&all, &place(Some("v2"))).unwrap();
        assert_eq!(found.0.volume.place.path(), "/dev/xvda");
    }

    #[test]
    fn one_whose_container_the_engine_has_forgotten_is_found_while_it_is_stale() {
        let mut one = listed("v1", "c9", "/dev/xvda", OWN);
        one.state = State::Stale { cause: Cause::ContainerGone };
        assert!(find(&[one], &place(None)).unwrap().is_stale());
    }

    fn mounted(read_only: bool) -> ListedVolume {
        let mut one = listed("v1", "c1", "", OWN);
        let mount_path = "/data".to_owned();
        one.volume.place = VolumePlace::Mount(MountPlace { mount_path, ..MountPlace::default() });
        let file_system = FileSystemUse {
            kind: "ext4".to_owned(),
            capacity_bytes: 5,
            read_only,
            ..FileSystemUse::default()
        };
        one.guest = Some(GuestView {
            disk_present: true,
            size: 7,
            read_only: false,
            container_running: true,
            container_state: ContainerState::Running,
            node_present: true,
            allowed: true,
            leftovers: Vec::new(),
            holders: None,
            holders_unknown: String::new(),
            file_system: Some(file_system),
        });
        one
    }

    #[test]
    fn a_mount_is_no_device_at_the_same_path() {
        let at = |is_mount| Place { path: "/data".to_owned(), is_mount, ..place(None) };
        assert!(find(&[mounted(false)], &at(false)).is_none());
        let found = find(&[mounted(false)], &at(true)).unwrap().attached();
        let ext4 = FileSystemStatus { kind: "ext4".to_owned(), size: 5 };
        assert_eq!((found.file_system, found.note), (Some(ext4), None));
    }

    #[test]
    fn people_are_told_of_a_file_system_that_has_become_read_only() {
        let mut one = mounted(true);
        assert!(FoundVolume(one.clone()).attached().note.unwrap().contains("fsck"));
        one.volume.read_only = true;
        assert_eq!(FoundVolume(one).attached().note, None);
    }
}
