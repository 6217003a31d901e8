//! Uses of a mounted file system that have no descriptor: the working directory and the root
//! directory of a process
//! ([proc_pid_cwd(5)](https://man7.org/linux/man-pages/man5/proc_pid_cwd.5.html),
//! [proc_pid_root(5)](https://man7.org/linux/man-pages/man5/proc_pid_root.5.html)), and its
//! mappings, of which its program is one
//! ([proc_pid_maps(5)](https://man7.org/linux/man-pages/man5/proc_pid_maps.5.html)).

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
    time::Instant,
};

use super::{
    disk::Disk,
    found::{Found, LONGEST_NAME, Trace},
    process,
    scan::Budget,
    task::Task,
};
use crate::{
    block::DeviceNumber,
    holder::HolderKind,
    namespace::Target,
    text::{Lines, lines, readable, split_once, unescaped, words},
};

/// After so many bytes the time is looked at.
const STEP: u64 = 64 << 10;

/// Links of a process that keep a file system in use, and the words for them. Its program is a
/// mapping.
const LINKS: [(&str, &str); 2] = [("cwd", "working directory"), ("root", "root directory")];

/// A search in all processes.
pub(super) struct Search<'a> {
    disks: &'a [Disk],
    containers: &'a [&'a Target],
    found: Vec<Found>,
}

impl<'a> Search<'a> {
    pub(super) fn new(disks: &'a [Disk], containers: &'a [&'a Target]) -> Search<'a> {
        Search { disks, containers, found: Vec::new() }
    }

    /// Finds the processes among `pids` that use a mounted disk, each once for each disk.
    pub(super) fn all(mut self, pids: &[u32], budget: &mut Budget) -> Vec<Found> {
        if self.disks.iter().all(|disk| disk.mounted.is_none()) {
            return self.found;
        }
        for &pid in pids {
            if !budget.is_left() {
                break;
            }
            let began = Instant::now();
            for (link, name) in LINKS {
                self.look_at(pid, link, name);
            }
            budget.spend(pid, began, 0);
        }
        // They cost more.
        for &pid in pids {
            if !budget.is_left() {
                break;
            }
            let began = Instant::now();
            self.mappings(pid, budget);
            budget.spend(pid, began, 0);
        }
        self.found
    }

    fn look_at(&mut self, pid: u32, link: &str, name: &str) {
        let path = PathBuf::from(Task::first(pid).file(link));
        let Some(inode) = process::inode(&path) else { return };
        let Some(index) = self.disk_of(inode.file_system) else { return };
        let target = fs::read_link(&path).unwrap_or_default();
        let shown = readable(target.as_os_str().as_bytes(), LONGEST_NAME);
        self.add(index, pid, format!("{shown} ({name})"));
    }

    fn mappings(&mut self, pid: u32, budget: &mut Budget) {
        let Ok(mut file) = File::open(Task::first(pid).file("maps")) else { return };
        let mut rest = Vec::new();
        loop {
            let read = (&mut file).take(STEP).read_to_end(&mut rest);
            let is_end = !matches!(read, Ok(1..));
            let whole = rest.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
            let until = if is_end { rest.len() } else { whole };
            self.mapped(pid, lines(&rest[..until]));
            rest.drain(..until);
            // The process has ended, or this is all.
            if is_end || !budget.is_left() {
                return;
            }
        }
    }

    fn mapped(&mut self, pid: u32, lines: Lines<'_>) {
        for line in lines {
            let Some((number, path)) = mapping(line) else { continue };
            let Some(index) = self.disk_of(number) else { continue };
            self.add(index, pid, format!("{} (mapped)", readable(&path, LONGEST_NAME)));
        }
    }

    fn disk_of(&self, number: DeviceNumber) -> Option<usize> {
        self.disks.iter().position(|disk| disk.has_files_of(number))
    }

    fn add(&mut self, index: usize, pid: u32, detail: String) {
        let disk = &self.disks[index];
        let is_known =
            |found: &Found| found.holder.pid == pid && found.holder.serial == disk.serial;
        if self.found.iter().any(is_known) {
            return;
        }
        // The kernel reports no change of these.
        let mut found = Found::new(disk, HolderKind::Process, detail, Trace::Nothing);
        process::identify(&mut found.holder, pid, self.containers);
        self.found.push(found);
    }
}

/// `st_dev` and path of the file in a line of maps; `None` for memory without a file.
pub(crate) fn mapping(line: &[u8]) -> Option<(DeviceNumber, Vec<u8>)> {
    let mut fields = words(line);
    let number = fields.nth(3)?;
    let inode = fields.next()?;
    if inode == b"0" {
        return None;
    }
    let (major, minor) = split_once(number, b":")?;
    let hexadecimal = |text| u32::from_str_radix(str::from_utf8(text).ok()?, 16).ok();
    let number = DeviceNumber { major: hexadecimal(major)?, minor: hexadecimal(minor)? };
    let path = line.windows(inode.len()).rposition(|part| part == inode);
    // The path is behind the inode and blanks, and may have blanks itself.
    let at = line.iter().position(|&byte| byte == b'/').or(path)?;
    Some((number, unescaped(&line[at..])))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{device_node::NodePath, holders::OwnMount, inode::Inode, mounted::MountIdentity};

    #[test]
    fn the_file_of_a_mapping_is_read() {
        let line = b"7f00-7f01 r-xp 00000000 fe:1a 1234                       /data/a b\\012c";
        let number = DeviceNumber { major: 0xfe, minor: 0x1a };
        assert_eq!(mapping(line), Some((number, b"/data/a b\nc".to_vec())));
        assert_eq!(mapping(b"7f00-7f01 rw-p 00000000 00:00 0    [heap]"), None);
        assert_eq!(mapping(b"7f00-7f01"), None);
    }

    /// The file system of this process's program stands for a volume.
    #[test]
    fn a_process_with_directories_and_mappings_on_a_volume_is_found_once() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        // It is there before its program is mapped.
        let maps = || fs::read(format!("/proc/{}/maps", child.id())).unwrap();
        while split_once(&maps(), b"/sleep").is_none() {
            std::thread::yield_now();
        }
        let program = File::open(format!("/proc/{}/exe", child.id())).unwrap();
        let number = Inode::of(&program).unwrap().file_system;
        let path = NodePath::new("/data").unwrap();
        let identity = MountIdentity::new("s", "c", &path, Some(number));
        let mounted = OwnMount { identity, namespace: None, numbers: vec![number] };
        let disk = Disk {
            serial: "s".into(),
            path: "/data".into(),
            devices: vec![("sda".into(), number)],
            mounted: Some(mounted),
        };
        let mut budget = Budget::until(Instant::now() + Duration::from_secs(60));
        let disks = [disk];
        let found = Search::new(&disks, &[]).all(&[child.id()], &mut budget);
        let mut maps = Search::new(&disks, &[]);
        maps.mappings(child.id(), &mut budget);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].holder.command, "sleep");
        assert!(maps.found[0].holder.detail.ends_with(" (mapped)"), "{:?}", maps.found);
    }
}
