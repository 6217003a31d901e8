//! Which QEMU to execute: the one that is recorded for the wrapper.
//!
//! Kata resolves the links of its `path`, so a wrapper knows itself by its file
//! ([`/proc/self/exe`](https://man7.org/linux/man-pages/man5/proc_pid_exe.5.html)). For a second
//! QEMU on the same node install a copy of the wrapper under another name: a record has the name of
//! its wrapper. It has one line, QEMU's absolute path.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    io::{self, Read as _},
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use block_volume_qmp::Trust;

use super::journal::Journal;

/// The directory of records.
const RECORDS: &str = "/etc/ecr-runtime";
/// Names QEMU in place of the record. Whoever sets it could start any program as this user.
const VARIABLE: &str = "ECR_QEMU_PATH";
/// Where Kata's own configurations have QEMU, the more specific one first.
const USUAL: [&str; 2] = ["/opt/kata/bin", "/usr/bin"];
/// The longest path.
const MAX_RECORD: u64 = 4096;
pub(super) const REMEDY: &str =
    "write QEMU's path to /etc/ecr-runtime/NAME.path, where NAME is the name of the wrapper's file";

/// No QEMU to execute.
#[derive(Debug, thiserror::Error)]
#[error("no QEMU is recorded in {record:?}, and none is in {}; {REMEDY}", USUAL.join(" or "))]
pub(super) struct NoQemu {
    record: PathBuf,
}

/// Finds QEMU. What is recorded and cannot be used is ignored with a line in the journal.
///
/// # Errors
/// None is recorded or installed.
pub(super) fn find(journal: &Journal) -> Result<PathBuf, NoQemu> {
    let own = fs::read_link("/proc/self/exe").unwrap_or_default();
    let record = record_of(Path::new(RECORDS), &own);
    let named = match env::var_os(VARIABLE) {
        Some(path) => usable(path.into(), &own),
        None => read(&record).and_then(|path| usable(path, &own)),
    };
    match named {
        Ok(path) => Ok(path),
        Err(why) => {
            let qemu = format!("qemu-system-{}", architecture());
            let usual = USUAL.map(|directory| Path::new(directory).join(&qemu));
            let usable = |path: &PathBuf| path.exists() && !is_same_file(path, &own);
            let path = usual.into_iter().find(usable).ok_or(NoQemu { record: record.clone() })?;
            journal.warning(&format!("{record:?} is ignored: {why}; QEMU is {path:?}"));
            Ok(path)
        }
    }
}

fn record_of(directory: &Path, own: &Path) -> PathBuf {
    let mut name = own.file_name().unwrap_or(OsStr::new("ecr-qemu")).to_owned();
    name.push(".path");
    directory.join(name)
}

/// Reads a record, if root alone could have written it.
fn read(record: &Path) -> Result<PathBuf, String> {
    let file = Trust::root().locate(record).and_then(|found| found.open_file());
    let mut text = Vec::new();
    file.map_err(|e| e.to_string())?
        .take(MAX_RECORD)
        .read_to_end(&mut text)
        .map_err(|e| e.to_string())?;
    Ok(PathBuf::from(OsString::from_vec(text.trim_ascii().to_vec())))
}

/// Checks that `path` can be QEMU's. Whether it can be executed is seen when it is.
fn usable(path: PathBuf, own: &Path) -> Result<PathBuf, String> {
    if !path.is_absolute() || path.as_os_str().as_bytes().contains(&b'\n') {
        return Err(format!("{path:?} is not one absolute path"));
    }
    if is_same_file(&path, own) {
        return Err(format!("{path:?} is the wrapper itself"));
    }
    Ok(path)
}

/// Whether both are the same file, under whatever name.
fn is_same_file(path: &Path, own: &Path) -> bool {
    let identity = |path: &Path| -> io::Result<_> {
        let file = fs::metadata(path)?;
        Ok((file.dev(), file.ino()))
    };
    // After an upgrade the name of this program's file is another one's; the link still leads to
    // it.
    let own = identity(Path::new("/proc/self/exe")).or_else(|_| identity(own));
    matches!((identity(path), own), (Ok(one), Ok(other)) if one == other)
}

/// QEMU's name of this processor.
fn architecture() -> &'static str {
    match env::consts::ARCH {
        "powerpc64" => "ppc64",
        known => known,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rstest::rstest;

    use super::*;

    #[test]
    fn a_record_has_the_name_of_its_wrapper() {
        let of = |own: &str| record_of(Path::new("/etc/ecr-runtime"), Path::new(own));
        assert_eq!(of("/usr/bin/ecr-qemu"), Path::new("/etc/ecr-runtime/ecr-qemu.path"));
        assert_eq!(of("/opt/ecr-qemu-snp"), Path::new("/etc/ecr-runtime/ecr-qemu-snp.path"));
    }

    #[rstest]
    #[case::root_alone(0o644, true)]
    #[case::group(0o664, false)]
    #[case::others(0o646, false)]
    fn a_record_that_others_can_write_is_not_read(#[case] mode: u32, #[case] is_read: bool) {
        let directory = tempfile::tempdir().unwrap();
        let record = directory.path().join("ecr-qemu.path");
        fs::write(&record, "/opt/kata/bin/qemu-system-x86_64\n").unwrap();
        fs::set_permissions(&record, fs::Permissions::from_mode(mode)).unwrap();
        let found = read(&record);
        assert_eq!(found.is_ok(), is_read, "{found:?}");
        if let Ok(path) = found {
            assert_eq!(path, Path::new("/opt/kata/bin/qemu-system-x86_64"));
        }
    }

    #[rstest]
    #[case("/usr/bin/qemu-system-x86_64", true)]
    #[case("qemu-system-x86_64", false)]
    #[case("", false)]
    #[case("/a\n/b", false)]
    #[case("/proc/self/exe", false)]
    fn one_absolute_path_of_another_file_is_usable(#[case] path: &str, #[case] expected: bool) {
        let own = env::current_exe().unwrap();
        assert_eq!(usable(path.into(), &own).is_ok(), expected);
    }

    #[test]
    fn a_link_to_the_wrapper_is_the_wrapper() {
        let own = env::current_exe().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("qemu");
        std::os::unix::fs::symlink(&own, &link).unwrap();
        assert!(usable(link, &own).unwrap_err().contains("the wrapper itself"));
    }
}
