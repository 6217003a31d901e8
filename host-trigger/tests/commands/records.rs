//! Records that an older build wrote: volumes that were attached before an update of `ecr-runtime`
//! are still known after it.
//!
//! The files in `records` are replies of QEMU to `query-fdsets`. `before-the-renames.json`
//! was recorded from the build before the types of records were renamed: a volume with two
//! attachments, and one whose run was killed before its commit record.

use crate::common::Host;
use host_trigger::{
    ops::volume::State,
    qemu::record::{CommitRecord, IntentRecord, Record},
};
use serde_json::Value;

const RECORDED: &str = include_str!("records/before-the-renames.json");

fn recorded_sets() -> Vec<Vec<String>> {
    let sets: Vec<Value> = serde_json::from_str(RECORDED).unwrap();
    let texts = |set: &Value| {
        let fds = set["fds"].as_array().unwrap().iter();
        fds.map(|fd| fd["opaque"].as_str().unwrap().to_owned()).collect()
    };
    sets.iter().map(texts).collect()
}

#[test]
fn records_of_an_older_build_are_parsed_and_written_in_the_same_form() {
    let texts = recorded_sets().concat();
    let records: Vec<_> = texts.iter().map(|text| Record::from_opaque(text).unwrap()).collect();
    let written: Vec<_> = records.iter().map(Record::to_opaque).collect();
    assert_eq!(written, texts);
    let [_, Record::Intent(intent), Record::Commit(first), Record::Commit(further)] = &records[..]
    else {
        panic!("{records:?}");
    };
    let IntentRecord { container, path, uid, mode, .. } = intent;
    assert_eq!((container.as_str(), path.as_str(), *uid, *mode), ("c1", "/dev/xvda", 1000, 0o640));
    let CommitRecord { committed, target, lun, node, started, .. } = first;
    assert_eq!(
        (*committed, *target, *lun, node.as_str(), *started),
        (true, 199, 30, "mknod", 1000)
    );
    assert_eq!(further.further.as_ref().unwrap().container, "c2");
}

#[tokio::test]
async fn volumes_of_an_older_build_are_listed_by_their_records() {
    let mut host = Host::boot().await;
    for texts in recorded_sets() {
        let mut set = None;
        for text in texts {
            set = Some(host.add_fd(&text, set).await.set);
        }
    }
    let listed = host.verb("list", &[]).await.listing().body.volumes;
    let found: Vec<_> = listed
        .iter()
        .map(|listed| {
            let volume = &listed.volume;
            // The descriptors alone are no whole disk.
            assert_eq!(listed.state, State::Incomplete);
            (volume.id.as_str(), volume.container.as_str(), volume.place.path())
        })
        .collect();
    let expected = [
        ("4f95a667d36b1bf2", "c1", "/dev/data/img"),
        ("e55f2d64d68be769", "c1", "/dev/xvda"),
        ("e55f2d64d68be769", "c2", "/dev/xvdb"),
    ];
    assert_eq!(found, expected);
}
