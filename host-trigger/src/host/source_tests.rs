//! Tests of vetting with real files, links and openers. What needs real disks is tested in a VM.

use std::{fs::OpenOptions, time::Duration};

use rstest::rstest;

use super::*;

fn deadline() -> Deadline {
    Deadline::after(Duration::from_secs(30))
}

async fn open(path: impl AsRef<Path>, read_only: bool) -> Result<Source, Error> {
    Source::open(path.as_ref(), read_only, deadline()).await
}

fn file_of(size: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    file
}

#[tokio::test]
async fn an_image_is_claimed_after_a_lease_probe() {
    let path = file_of(1 << 20).into_temp_path();
    let source = open(&path, false).await.unwrap();
    assert_eq!((source.size, source.kind), (1 << 20, SourceKind::File));
    assert!(source.claim(deadline()).await.is_ok() && source.is_exclusive());
    let second = open(&path, false).await.unwrap();
    assert_eq!(second.identity, source.identity);
    assert!(
        matches!(second.claim(deadline()).await, Err(Error::SourceHeld { .. }))
            && !second.is_exclusive()
    );
}

#[tokio::test]
async fn an_image_with_another_reader_may_be_read_and_is_not_exclusive() {
    let path = file_of(1 << 20).into_temp_path();
    let first = open(&path, true).await.unwrap();
    let second = open(&path, true).await.unwrap();
    assert!(
        first.is_exclusive() && second.claim(deadline()).await.is_ok() && !second.is_exclusive()
    );
}

#[tokio::test]
async fn an_image_that_changed_after_it_was_vetted_is_not_claimed() {
    let path = file_of(1 << 20).into_temp_path();
    let source = open(&path, false).await.unwrap();
    let reader = File::open(&path).unwrap();
    assert!(matches!(source.claim(deadline()).await, Err(Error::SourceHeld { .. })));
    drop(reader);
    source.claim(deadline()).await.unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 19).unwrap();
    assert!(matches!(source.claim(deadline()).await, Err(Error::SourceChanged { .. })));
}

#[tokio::test]
async fn a_link_is_followed_and_the_real_path_reported() {
    let path = file_of(512).into_temp_path();
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("by-id");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let source = open(&link, true).await.unwrap();
    assert_eq!((source.given.as_path(), source.device.as_path()), (link.as_path(), &*path));
}

#[rstest]
#[case("/nonexistent", 3)]
#[case("/dev/null", 6)]
#[case("/tmp", 6)]
#[case("/dev/null/x", 3)]
#[tokio::test]
async fn unsafe_paths_are_refused(#[case] path: &str, #[case] exit_code: u8) {
    assert_eq!(
        open(Path::new(path), false).await.unwrap_err().class().exit_status.code(),
        exit_code
    );
}

#[tokio::test]
async fn a_dangling_link_is_not_found() {
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("l");
    std::os::unix::fs::symlink("/nonexistent", &link).unwrap();
    assert!(matches!(open(&link, false).await, Err(Error::SourceNotFound { .. })));
}

#[tokio::test]
async fn invalid_sizes_are_refused() {
    let empty = file_of(0);
    assert!(matches!(open(empty.path(), false).await, Err(Error::SourceEmpty { .. })));
    let odd = file_of(513);
    assert!(matches!(open(odd.path(), false).await, Err(Error::SourceUnaligned { size: 513, .. })));
}
