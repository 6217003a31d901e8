//! Processes that have block devices or files open
//! ([`/proc/PID/fd`](https://man7.org/linux/man-pages/man5/proc_pid_fd.5.html)). They are found by
//! device and inode number and not by path: a process may use a node of its own in a private
//! `/dev`. An exclusive open does not detect processes that opened the device without `O_EXCL`;
//! Kata's own QEMU is one of these.
//!
//! Every user of this host can have as many descriptors as the limits allow, and each costs time.
//! So the processes that could open the source by its path are searched first, and all of them. Of
//! the others, which can have it only if it was passed to them, those with few descriptors are
//! searched first, and not for long.

use std::{
    ffi::{CString, OsStr},
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::PathBuf,
    time::Duration,
};

use nix::sys::stat::makedev;

use super::FileId;
use crate::host::{
    credentials::{Access, Credentials},
    kernel_text, process,
    search::{BATCH, Search},
};

/// The most time for processes that could not open the source by its path; less if the command has
/// little time.
const OTHERS_TIME: Duration = Duration::from_secs(1);

/// A process that has one of the wanted files open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Opener {
    pub(crate) pid: i32,
    pub(crate) file_id: FileId,
    /// At least one of its descriptors can write.
    pub(crate) writes: bool,
}

/// Why a search did not find everything.
#[derive(Debug)]
pub(crate) enum Unseen {
    /// It reached its deadline; the text says on what.
    TimeUp(String),
    /// The descriptors of a process cannot be read.
    Unreadable(io::Error),
}

impl From<io::Error> for Unseen {
    fn from(error: io::Error) -> Self {
        Self::Unreadable(error)
    }
}

/// A process and the number of its descriptors.
#[derive(Debug, Clone)]
struct Process {
    pid: i32,
    user: Option<u32>,
    descriptors: u64,
}

impl Process {
    fn describe(&self) -> String {
        let user = self.user.map(|user| format!(" of user {user}")).unwrap_or_default();
        let (pid, count) = (self.pid, self.descriptors);
        format!("process {pid} ({}){user}, which has {count} of them", process::name(pid))
    }
}

/// Returns every other process that has one of `wanted` open; they are at `paths`.
///
/// # Errors
/// The search reached its deadline, or a process's descriptors cannot be read.
pub(crate) fn openers(
    wanted: &[FileId],
    paths: &[PathBuf],
    search: &Search,
) -> Result<Vec<Opener>, Unseen> {
    let access: Vec<_> = paths.iter().filter_map(|path| Access::of(path)).collect();
    let (mut first, others) = processes(&access, search)?;
    let mut found = Vec::new();
    for index in 0..first.len() {
        if !openings(&mut first[index], wanted, search, &mut found)? {
            // The one that takes most of the time.
            return Err(time_up(first.iter().max_by_key(|process| process.descriptors)));
        }
    }
    let search = search.within(OTHERS_TIME.min(search.remaining() / 4));
    for mut process in others {
        if !openings(&mut process, wanted, &search, &mut found)? {
            break;
        }
    }
    Ok(found)
}

fn time_up(most: Option<&Process>) -> Unseen {
    let most = most.map(|most| format!(", above all those of {}", most.describe()));
    Unseen::TimeUp(format!("the search of all open descriptors{}", most.unwrap_or_default()))
}

/// Returns all other processes: those that could open the files themselves, and the others. Each
/// begins with those of few descriptors.
fn processes(access: &[Access], search: &Search) -> Result<(Vec<Process>, Vec<Process>), Unseen> {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    // Of a directory of descriptors, the size is their number since Linux 6.2, and 0 before.
    let count = |pid: &str| fs::metadata(format!("/proc/{pid}/fd")).map(|fds| fds.size()).ok();
    let (own_pid, own_mounts) = (std::process::id().cast_signed(), namespace("self"));
    let are_counted = count("self") > Some(0);
    let (mut first, mut others) = (Vec::new(), Vec::new());
    for pid in process::all()?.into_iter().filter(|pid| *pid != own_pid) {
        if search.check().is_err() {
            return Err(time_up(None));
        }
        let text = pid.to_string();
        let descriptors = count(&text);
        // A thread of the kernel: most processes of an idle host are.
        if are_counted && descriptors == Some(0) {
            continue;
        }
        let credentials = unless_gone(Credentials::of(pid));
        let Some(credentials) = credentials.map_err(|e| kernel_text::of(describe(pid))(e))? else {
            continue;
        };
        let shares_mounts = own_mounts.is_some() && namespace(&text) == own_mounts;
        let may_open = access.iter().any(|access| access.allows(&credentials, shares_mounts));
        let descriptors = descriptors.unwrap_or_default();
        let process = Process { pid, user: credentials.user(), descriptors };
        if may_open || credentials.is_capable() { &mut first } else { &mut others }.push(process);
    }
    for processes in [&mut first, &mut others] {
        processes.sort_by_key(|process| process.descriptors);
    }
    Ok((first, others))
}

/// Adds what a process has open of `wanted`, and counts its descriptors. Returns false if the
/// search ended before.
fn openings(
    process: &mut Process,
    wanted: &[FileId],
    search: &Search,
    found: &mut Vec<Opener>,
) -> Result<bool, Unseen> {
    if search.check().is_err() {
        return Ok(false);
    }
    let of = process.clone();
    search.step(move || format!("the search of the open descriptors of {}", of.describe()));
    match read_descriptors(process, wanted, search, found) {
        // The kernel may protect a process of more capabilities, such as the host's first one.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied && !must_be_seen(process.pid) => {
            Ok(true)
        }
        ended => ended.map_err(|e| kernel_text::of(describe(process.pid))(e).into()),
    }
}

/// Whether a process whose descriptors may not be read could be one that has the source.
fn must_be_seen(pid: i32) -> bool {
    !Credentials::own_may_trace() || process::is_named_qemu(pid)
}

fn read_descriptors(
    process: &mut Process,
    wanted: &[FileId],
    search: &Search,
    found: &mut Vec<Opener>,
) -> io::Result<bool> {
    let pid = process.pid;
    let Some(directory) = unless_gone(fs::File::open(format!("/proc/{pid}/fd")))? else {
        return Ok(true);
    };
    // Another process may get the number.
    let listed = fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    let Some(listed) = unless_gone(listed)? else { return Ok(true) };
    let mut count = 0;
    for (index, entry) in listed.enumerate() {
        if index % BATCH == BATCH - 1 && search.check().is_err() {
            process.descriptors = process.descriptors.max(count);
            return Ok(false);
        }
        // The process has ended.
        let Ok(entry) = entry else { break };
        count += 1;
        let name = entry.file_name();
        let file_id = match file_of(directory.as_fd(), &name) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Err(e),
            // It was closed, or its file system has failed.
            file_id => file_id.unwrap_or_default(),
        };
        let Some(file_id) = file_id.filter(|file_id| wanted.contains(file_id)) else { continue };
        // The link's permissions are the descriptor's access mode. With O_PATH it has none: whoever
        // sees the path can have that, and can do nothing with it.
        let access = fs::symlink_metadata(entry.path()).map_or(0, |link| link.mode() & 0o600);
        if access == 0 {
            continue;
        }
        let writes = access & 0o200 != 0;
        match found.iter_mut().find(|known| known.pid == pid && known.file_id == file_id) {
            Some(known) => known.writes |= writes,
            None => found.push(Opener { pid, file_id, writes }),
        }
    }
    process.descriptors = process.descriptors.max(count);
    Ok(true)
}

fn describe(pid: i32) -> String {
    format!("the descriptors of process {pid} ({})", process::name(pid))
}

/// Returns `None` if the process has ended.
fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Returns what a descriptor refers to, without a request to the server of its file system: a
/// network or FUSE server may not reply. `None` if that is neither a block device nor a regular
/// file.
#[expect(
    unsafe_code,
    reason = "neither std nor nix wraps statx, and stat sends a request to the server"
)]
fn file_of(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<FileId>> {
    let name = CString::new(name.as_bytes())?;
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    let mask = libc::STATX_TYPE | libc::STATX_INO;
    // SAFETY: the name ends with a NUL, and the call writes one `struct statx` to the address,
    // which is valid for the call.
    let result = unsafe {
        libc::statx(
            directory.as_raw_fd(),
            name.as_ptr(),
            libc::AT_STATX_DONT_SYNC,
            mask,
            found.as_mut_ptr(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the zeroed structure is valid, and the call has filled it.
    let found = unsafe { found.assume_init() };
    Ok(match u32::from(found.stx_mode) & libc::S_IFMT {
        libc::S_IFBLK => {
            Some(FileId::Block(makedev(found.stx_rdev_major.into(), found.stx_rdev_minor.into())))
        }
        libc::S_IFREG => Some(FileId::File(
            makedev(found.stx_dev_major.into(), found.stx_dev_minor.into()),
            found.stx_ino,
        )),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        os::unix::{fs::PermissionsExt, process::CommandExt},
        process::{Child, Command, Stdio},
    };

    use super::*;
    use crate::Deadline;

    fn sleeper(stdin: impl Into<Stdio>, user: u32) -> Child {
        Command::new("sleep").arg("60").stdin(stdin).uid(user).spawn().unwrap()
    }

    fn end(children: &mut [&mut Child]) {
        for child in children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn search() -> Search {
        Search::until(Deadline::after(Duration::from_secs(30)))
    }

    #[test]
    fn readers_and_writers_are_distinguished() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let file_id = FileId::at(file.path()).unwrap();
        let mut reader = sleeper(File::open(file.path()).unwrap(), 0);
        let mut writer = sleeper(file.reopen().unwrap(), 0);
        let found = openers(&[file_id], &[file.path().to_owned()], &search());
        end(&mut [&mut reader, &mut writer]);
        let mut found = found.unwrap();
        found.retain(|opener| [reader.id(), writer.id()].contains(&opener.pid.cast_unsigned()));
        found.sort_by_key(|opener| opener.writes);
        let expected = [(reader.id(), false), (writer.id(), true)];
        let expected =
            expected.map(|(pid, writes)| Opener { pid: pid.cast_signed(), file_id, writes });
        assert_eq!(found, expected);
    }

    #[test]
    fn a_process_that_could_not_open_the_file_is_searched_last_and_found_nevertheless() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let file_id = FileId::at(file.path()).unwrap();
        fs::set_permissions(file.path(), PermissionsExt::from_mode(0o600)).unwrap();
        let mut stranger = sleeper(file.reopen().unwrap(), 65534);
        let is_it = |process: &Process| process.pid == stranger.id().cast_signed();
        let access = [Access::of(file.path()).unwrap()];
        let (first, others) = processes(&access, &search()).unwrap();
        assert!(!first.iter().any(is_it) && others.iter().any(is_it));
        let found = openers(&[file_id], &[file.path().to_owned()], &search());
        end(&mut [&mut stranger]);
        assert!(found.unwrap().iter().any(|opener| opener.pid == stranger.id().cast_signed()));
    }

    #[test]
    fn a_search_that_ends_at_its_deadline_is_no_empty_result() {
        let ended = search().within(Duration::ZERO);
        let file = tempfile::NamedTempFile::new().unwrap();
        let file_id = FileId::at(file.path()).unwrap();
        let found = openers(&[file_id], &[], &ended);
        assert!(matches!(found, Err(Unseen::TimeUp(_))), "{found:?}");
        // Nor is one that ends in the middle of a process.
        let mut process = Process { pid: 1, user: Some(0), descriptors: 7 };
        assert!(!openings(&mut process, &[file_id], &ended, &mut Vec::new()).unwrap());
        let Unseen::TimeUp(what) = time_up(Some(&process)) else { panic!() };
        assert!(what.contains("process 1 (") && what.contains("7 of them"), "{what}");
    }

    #[test]
    fn descriptors_that_may_not_be_read_are_an_error_and_those_of_an_ended_process_are_none() {
        let of = |errno| unless_gone(Err::<(), _>(io::Error::from_raw_os_error(errno)));
        for errno in [libc::EACCES, libc::EPERM, libc::EMFILE] {
            assert!(of(errno).is_err());
        }
        for errno in [libc::ENOENT, libc::ESRCH] {
            assert!(of(errno).unwrap().is_none());
        }
    }
}
