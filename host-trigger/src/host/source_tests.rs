//! Tests of vetting with real files, links and openers. What needs real disks is tested in a VM.

use std::fs::OpenOptions;

use rstest::rstest;

use super::*;

fn file_of(size: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    file
}

#[test]
fn an_image_is_claimed_after_a_lease_probe() {
    let path = file_of(1 << 20).into_temp_path();
    let source = Source::open(&path, false).unwrap();
    assert_eq!((source.size, source.kind), (1 << 20, SourceKind::File));
    assert!(source.claim().is_ok() && source.is_exclusive());
    let second = Source::open(&path, false).unwrap();
    assert_eq!(second.identity, source.identity);
    assert!(matches!(second.claim(), Err(Error::SourceHeld { .. })) && !second.is_exclusive());
}

#[test]
fn an_image_with_another_reader_may_be_read_and_is_not_exclusive() {
    let path = file_of(1 << 20).into_temp_path();
    let first = Source::open(&path, true).unwrap();
    let second = Source::open(&path, true).unwrap();
    assert!(first.is_exclusive() && second.claim().is_ok() && !second.is_exclusive());
}

#[test]
fn an_image_that_changed_after_it_was_vetted_is_not_claimed() {
    let path = file_of(1 << 20).into_temp_path();
    let source = Source::open(&path, false).unwrap();
    let reader = File::open(&path).unwrap();
    assert!(matches!(source.claim(), Err(Error::SourceHeld { .. })));
    drop(reader);
    source.claim().unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 19).unwrap();
    assert!(matches!(source.claim(), Err(Error::SourceChanged { .. })));
}

#[test]
fn a_link_is_followed_and_the_real_path_reported() {
    let path = file_of(512).into_temp_path();
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("by-id");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let source = Source::open(&link, true).unwrap();
    assert_eq!((source.given.as_path(), source.device.as_path()), (link.as_path(), &*path));
}

#[rstest]
#[case("/nonexistent", 3)]
#[case("/dev/null", 6)]
#[case("/tmp", 6)]
#[case("/dev/null/x", 3)]
fn unsafe_paths_are_refused(#[case] path: &str, #[case] exit_code: u8) {
    assert_eq!(
        Source::open(Path::new(path), false).unwrap_err().class().exit_status.code(),
        exit_code
    );
}

#[test]
fn a_dangling_link_is_not_found() {
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("l");
    std::os::unix::fs::symlink("/nonexistent", &link).unwrap();
    assert!(matches!(Source::open(&link, false), Err(Error::SourceNotFound { .. })));
}

#[test]
fn invalid_sizes_are_refused() {
    let empty = file_of(0);
    assert!(matches!(Source::open(empty.path(), false), Err(Error::SourceEmpty { .. })));
    let odd = file_of(513);
    assert!(matches!(
        Source::open(odd.path(), false),
        Err(Error::SourceUnaligned { size: 513, .. })
    ));
}
