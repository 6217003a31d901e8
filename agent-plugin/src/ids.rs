//! Users and groups of a container that has a user namespace, as this side numbers them:
//! [user_namespaces(7)](https://man7.org/linux/man-pages/man7/user_namespaces.7.html),
//! [setfsuid(2)](https://man7.org/linux/man-pages/man2/setfsuid.2.html).
//!
//! A file system that was mounted inside such a namespace takes nothing from a user whom it has no
//! number for (EOVERFLOW), and root of the guest is one of these. So what we make in there is made
//! as the container's own root.

use nix::{
    errno::Errno,
    unistd::{Gid, Uid, setfsgid, setfsuid},
};

use crate::{
    error::{Error, Result, Unsupported},
    namespace::Target,
};

/// The numbers of one container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ids {
    /// `None`: it has our own.
    maps: Option<(Map, Map)>,
}

/// One of its tables, for users or groups.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Map(Vec<Range>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    inside: u32,
    outside: u32,
    count: u32,
}

impl Ids {
    /// Those of `target`.
    ///
    /// # Errors
    /// The container has ended, or `/proc` does not answer.
    pub fn of(target: &Target) -> Result<Ids> {
        if target.container.user_namespace.is_none() {
            return Ok(Ids::default());
        }
        let read = |file| -> Result<Map> {
            let text = target.proc(file)?;
            Map::parse(&text)
                .ok_or_else(|| Error::Malformed { subject: file.to_owned(), found: text })
        };
        Ok(Ids { maps: Some((read("uid_map")?, read("gid_map")?)) })
    }

    /// The owner that the container knows as `uid` and `gid`.
    ///
    /// # Errors
    /// It knows no such user or group.
    pub fn outside(&self, uid: u32, gid: u32) -> Result<(u32, u32)> {
        let Some((uids, gids)) = &self.maps else { return Ok((uid, gid)) };
        uids.outside(uid)
            .zip(gids.outside(gid))
            .ok_or_else(|| Unsupported::Owner { uid, gid }.into())
    }

    /// From now on the calling thread, which must end soon, makes files as the container's root;
    /// whatever else it could do it still can.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn assume(&self) -> Result<()> {
        let Some((uids, gids)) = &self.maps else { return Ok(()) };
        keep_capabilities().map_err(Error::system("prctl", "PR_SET_SECUREBITS"))?;
        let (uid, gid) = (Uid::from_raw(uids.root()), Gid::from_raw(gids.root()));
        setfsgid(gid);
        setfsuid(uid);
        // Neither says whether it worked but by what a further call returns: the present one.
        let refused = setfsuid(uid) != uid || setfsgid(gid) != gid;
        if refused {
            Err(Error::system("setfsuid", format!("{uid}"))(Errno::EPERM))
        } else {
            Ok(())
        }
    }
}

impl Map {
    fn parse(text: &str) -> Option<Map> {
        let range = |line: &str| {
            let mut numbers = line.split_ascii_whitespace().map(|number| number.parse().ok());
            let mut next = || numbers.next().flatten();
            Some(Range { inside: next()?, outside: next()?, count: next()? })
        };
        let ranges = text.lines().map(range).collect::<Option<Vec<_>>>()?;
        (!ranges.is_empty()).then_some(Map(ranges))
    }

    fn outside(&self, id: u32) -> Option<u32> {
        self.0.iter().find_map(|range| {
            let offset = id.checked_sub(range.inside).filter(|offset| *offset < range.count)?;
            range.outside.checked_add(offset)
        })
    }

    /// A namespace without a root has somebody, or it has nobody who could use anything.
    fn root(&self) -> u32 {
        self.outside(0).unwrap_or(self.0[0].outside)
    }
}

/// Without this bit, the kernel takes from a thread that is not root for files what root may do
/// with files.
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
        let map = |text| {
            Map::parse(text).unwrap_or_else(|| panic!("{text:?} is what the kernel could write"))
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
    fn an_owner_is_looked_up_in_both_tables(
        #[case] uid: u32,
        #[case] gid: u32,
        #[case] outside: Option<(u32, u32)>,
    ) {
        assert_eq!(ids().outside(uid, gid).ok(), outside);
    }

    #[test]
    fn without_a_user_namespace_everybody_is_who_they_are() {
        assert_eq!(Ids::default().outside(7, u32::MAX).unwrap(), (7, u32::MAX));
    }

    #[test]
    fn a_table_that_makes_no_sense_is_none() {
        for text in ["", "0 1\n", "0 1 x\n", "0 1 -1\n", "0 1 4294967296\n"] {
            assert_eq!(Map::parse(text), None, "{text:?}");
        }
        assert_eq!(
            Map::parse("5 4294967295 2\n").unwrap().outside(6),
            None,
            "no number is that high"
        );
    }

    #[test]
    fn the_root_of_a_namespace_without_one_is_its_first_user() {
        assert_eq!(Map::parse("1000 5000 10\n").unwrap().root(), 5000);
        assert_eq!(ids().maps.unwrap().0.root(), 100_000);
    }

    #[test]
    fn a_thread_makes_files_as_the_containers_root_and_stays_able_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::thread::scope(|scope| {
            let made = scope.spawn(|| {
                ids().assume().expect("these tests need root");
                std::fs::write(&path, "").expect("the directory is root's, and no one else's");
            });
            made.join().unwrap();
        });
        let owner = std::os::unix::fs::MetadataExt::uid(&path.metadata().unwrap());
        assert_eq!(owner, 100_000);
        std::fs::write(directory.path().join("mine"), "").unwrap();
    }
}
