//! A source whose path is not UTF-8: every command works on it, and what is printed and recorded
//! can be turned back into the path.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use crate::common::{Host, records};
use host_trigger::{
    ops::recovery::Action,
    output::envelope::Outcome,
    qemu::record::{IntentRecord, Record},
};

const MIB: u64 = 1 << 20;
const C1: [&str; 4] = ["--container", "c1", "--device-path", "/dev/xvda"];

/// An image whose name is not UTF-8 and has a backslash.
fn image(directory: &Path) -> (PathBuf, String) {
    let path = directory.join(OsStr::from_bytes(b"a\\\xff.img"));
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    (path, format!("bytes:{}/a\\\\\\xff.img", directory.display()))
}

#[tokio::test]
async fn every_command_works_on_a_source_that_is_not_utf_8() {
    let mut host = Host::boot().await;
    let directory = tempfile::tempdir().unwrap();
    let (path, text) = image(directory.path());
    let audit = host.path("audit");
    let audited = ["--audit-log", audit.to_str().unwrap()];

    let ran = host.plug(&path, "/dev/xvda", &audited).await;
    assert!(ran.stdout.contains(&serde_json::to_string(&text).unwrap()), "{ran:?}");
    let plugged = ran.report();
    assert_eq!(plugged.body.volumes[0].source_device, path);
    let log = std::fs::read_to_string(&audit).unwrap();
    let line: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(line["volume"]["source_device"], text.as_str());
    let arguments = line["arguments"].as_array().unwrap();
    assert!(arguments.contains(&text.as_str().into()), "{line}");
    let snapshot = host.snapshot().await;
    let [Record::Intent(IntentRecord { source, .. }), ..] = &records(&snapshot)[..] else {
        panic!("{snapshot}")
    };
    assert_eq!(*source, text);

    assert_eq!(host.plug(&path, "/dev/xvda", &[]).await.report().result, Outcome::Unchanged);
    let listed = host.verb("list", &[]).await.listing().body.volumes;
    assert_eq!(listed[0].volume.source_device, path);
    let resized = host.verb("resize", &[&C1[..], &["--size", "2MiB"]].concat()).await.report();
    assert_eq!((resized.result, resized.body.volumes[0].size), (Outcome::Resized, 2 * MIB));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 2 * MIB);
    let repaired = host.verb("repair", &[]).await.repaired().body.volumes;
    assert_eq!((repaired[0].action, &repaired[0].source), (Action::Kept, &text));
    let report = host.verb("hot-unplug", &C1).await.report();
    assert_eq!(report.body.volumes[0].source_device, path);
}

#[tokio::test]
async fn an_error_names_such_a_path() {
    let host = Host::boot().await;
    let path = Path::new(OsStr::from_bytes(b"/nonexistent/\xff"));
    let ran = host.plug(path, "/dev/xvda", &[]).await;
    ran.assert_fails("source_not_found", 3);
    assert!(ran.failure().message.contains("\\xFF"), "{ran:?}");
}
