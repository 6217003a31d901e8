//! Users and groups of a container that has a user namespace, as ids of the guest:
//! [user_namespaces(7)](https://man7.org/linux/man-pages/man7/user_namespaces.7.html),
//! [setfsuid(2)](https://man7.org/linux/man-pages/man2/setfsuid.2.html).
//!
//! A file system that was mounted inside such a namespace refuses files of a user who has no id
//! there (EOVERFLOW), and root of the guest is such a user. So files there are made as the
//! container's own root.

use nix::{
    errno::Errno,
    unistd::{Gid, Uid, setfsgid, setfsuid},
};

use crate::{
    agent::ContainerError,
    error::{BoxedError, Error, Result, Unsupported},
    namespace::Target,
    text::{decimal, displayed, lines, readable, words},
};

/// The id maps of one container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ids {
    /// `None`: the container is in the agent's user namespace.
    maps: Option<(Map, Map)>,
}

/// One map, of users or groups.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Map(Vec<Range>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    inside: u32,
    outside: u32,
    count: u32,
}

impl Ids {
    /// Reads the maps of `target`.
    ///
    /// # Errors
    /// The container has ended or left its user namespace, or `/proc` cannot be read.
    pub fn of(target: &Target) -> Result<Ids> {
        let Some(namespace) = &target.container.user_namespace else { return Ok(Ids::default()) };
        // The maps are those of the namespace that the process is in now.
        let check = || {
            if target.proc_is("ns/user", namespace)? { Ok(()) } else { Err(left(target)) }
        };
        check()?;
        let read = |file| -> Result<Map> {
            let text = target.proc(file)?;
            Map::parse(&text).ok_or_else(|| {
                let subject = file.to_owned();
                Error::Malformed { subject, found: readable(&text, 80) }.into()
            })
        };
        let ids = Ids { maps: Some((read("uid_map")?, read("gid_map")?)) };
        check()?;
        Ok(ids)
    }

    /// The guest's ids of the container's `uid` and `gid`.
    ///
    /// # Errors
    /// The container has no such user or group.
    pub fn outside(&self, uid: u32, gid: u32) -> Result<(u32, u32)> {
        let Some((uids, gids)) = &self.maps else { return Ok((uid, gid)) };
        uids.outside(uid)
            .zip(gids.outside(gid))
            .ok_or_else(|| Unsupported::Owner { uid, gid }.into())
    }

    /// The guest's id of the container's group `gid`.
    ///
    /// # Errors
    /// The container has no such group.
    pub fn group_outside(&self, gid: u32) -> Result<u32> {
        let Some((_, gids)) = &self.maps else { return Ok(gid) };
        gids.outside(gid).ok_or_else(|| Unsupported::Group { gid }.into())
    }

    /// Makes the calling thread create files as the container's root. It keeps its capabilities,
    /// and must end soon.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn assume(&self) -> Result<()> {
        let Some((uids, gids)) = &self.maps else { return Ok(()) };
        keep_capabilities().map_err(Error::system("prctl", &"PR_SET_SECUREBITS"))?;
        let (uid, gid) = (Uid::from_raw(uids.root()), Gid::from_raw(gids.root()));
        setfsgid(gid);
        setfsuid(uid);
        // Neither call reports failure: each returns the previous id, so a second call shows the
        // new one.
        let refused = setfsuid(uid) != uid || setfsgid(gid) != gid;
        if refused {
            Err(Error::system("setfsuid", &format_args!("{uid}"))(Errno::EPERM))
        } else {
            Ok(())
        }
    }
}

/// The error for a container whose ids cannot be known.
fn left(target: &Target) -> BoxedError {
    let reason = "its first process has left the container's user namespace";
    let source = ContainerError::Unreachable(reason.to_owned());
    BoxedError::from(Error::Container { id: displayed(&target.id), source })
}

impl Map {
    fn parse(text: &[u8]) -> Option<Map> {
        let mut ranges = Vec::new();
        for line in lines(text) {
            let mut words = words(line);
            let mut next = || decimal(words.next()?);
            ranges.push(Range { inside: next()?, outside: next()?, count: next()? });
        }
        (!ranges.is_empty()).then_some(Map(ranges))
    }

    fn outside(&self, id: u32) -> Option<u32> {
        self.0.iter().find_map(|range| {
            let offset = id.checked_sub(range.inside).filter(|offset| *offset < range.count)?;
            range.outside.checked_add(offset)
        })
    }

    /// The id of root, or of the first user of a namespace without a root.
    fn root(&self) -> u32 {
        self.outside(0).unwrap_or(self.0[0].outside)
    }
}

/// The guest's id of a user, by a map, for the fuzz targets.
#[cfg(feature = "fuzz")]
pub(crate) fn outside(map: &[u8], id: u32) -> Option<u32> {
    Map::parse(map)?.outside(id)
}

/// Sets the bit without which the kernel removes the file capabilities of a thread whose fsuid is
/// not root.
#[expect(
    unsafe_code,
    reason = "prctl(2) with PR_SET_SECUREBITS has no safe wrapper in libc or nix"
)]
fn keep_capabilities() -> Result<(), Errno> {
    // SAFETY: the call takes numbers alone, and changes the calling thread only.
    Errno::result(unsafe {
        libc::prctl(libc::PR_SET_SECUREBITS, libc::SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
    })
    .map(drop)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn ids() -> Ids {
        let map = |text: &str| {
            Map::parse(text.as_bytes()).unwrap_or_else(|| panic!("{text:?} is a valid map"))
        };
        Ids {
            maps: Some((
                map("         0     100000      65536\n"),
                map("0 100000 1000\n1000 5 1\n"),
            )),
        }
    }

    #[rstest]
    #[case(0, 0, Some((100_000, 100_000)))]
    #[case(65_535, 1000, Some((165_535, 5)))]
    #[case(65_536, 0, None)]
    #[case(0, 1001, None)]
    #[case(u32::MAX, 0, None)]
    fn an_owner_is_looked_up_in_both_maps(
        #[case] uid: u32,
        #[case] gid: u32,
        #[case] outside: Option<(u32, u32)>,
    ) {
        assert_eq!(ids().outside(uid, gid).ok(), outside);
    }

    #[test]
    fn a_group_is_looked_up_in_its_map_alone() {
        assert_eq!(ids().group_outside(1000).unwrap(), 5);
        assert!(ids().group_outside(1001).unwrap_err().to_string().contains("group 1001"));
        assert_eq!(Ids::default().group_outside(7).unwrap(), 7);
    }

    #[test]
    fn without_a_user_namespace_ids_are_not_translated() {
        assert_eq!(Ids::default().outside(7, u32::MAX).unwrap(), (7, u32::MAX));
    }

    #[test]
    fn an_invalid_map_is_none() {
        for text in ["", "0 1\n", "0 1 x\n", "0 1 -1\n", "0 1 4294967296\n"] {
            assert_eq!(Map::parse(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(
            Map::parse(b"5 4294967295 2\n").unwrap().outside(6),
            None,
            "no number is that high"
        );
    }

    #[test]
    fn the_root_of_a_namespace_without_one_is_its_first_user() {
        assert_eq!(Map::parse(b"1000 5000 10\n").unwrap().root(), 5000);
        assert_eq!(ids().maps.unwrap().0.root(), 100_000);
    }

    #[test]
    fn a_thread_makes_files_as_the_containers_root_and_keeps_its_capabilities() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::thread::scope(|scope| {
            let made = scope.spawn(|| {
                ids().assume().expect("these tests need root");
                std::fs::write(&path, "").expect("the directory is root's alone");
            });
            made.join().unwrap();
        });
        let owner = std::os::unix::fs::MetadataExt::uid(&path.metadata().unwrap());
        assert_eq!(owner, 100_000);
        std::fs::write(directory.path().join("mine"), "").unwrap();
    }
}
