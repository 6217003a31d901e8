//! Records: the free texts of the descriptors in QEMU's descriptor sets. Other clients keep their
//! own texts there. A record that was read is written back unchanged.

#![no_main]

use block_volume_qmp::PassedFd;
use host_trigger::{
    qemu::{
        record::{Access, CommitRecord, FurtherAttachment, IntentRecord, PREFIX, Record},
        volume_state::{Attachment, VolumeState},
    },
    volume_id::VolumeId,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = str::from_utf8(input) else { return };
    if let Some(id) = VolumeId::of_name(text) {
        assert!(text == id.device() || text == id.node());
    }
    // The texts of one descriptor set, one per line.
    let mut state = VolumeState { node: Some(1 << 20), device: true, ..VolumeState::default() };
    for (fd, line) in (0..).zip(text.lines()) {
        let Some(record) = Record::from_opaque(line) else { continue };
        assert!(line.starts_with(PREFIX));
        assert_eq!(Record::from_opaque(&record.to_opaque()).as_ref(), Some(&record));
        match record {
            Record::Intent(intent) => state.intents.push((PassedFd { set: 7, fd }, intent)),
            Record::Commit(commit) => {
                let outcome = commit.outcome();
                assert_eq!(outcome.parents_made, commit.parents_made);
                state.commits.push((PassedFd { set: 7, fd }, commit));
            }
            Record::Abandoned(record) => {
                state.intents.push((PassedFd { set: 7, fd }, record.abandoned));
                state.is_abandoned = true;
            }
        }
    }
    assert_attachments(&state);
});

/// Asserts that each record belongs to one attachment.
fn assert_attachments(state: &VolumeState) {
    let all = state.attachments();
    assert_eq!(all.is_empty(), state.intents.is_empty());
    let mut paths: Vec<_> =
        all.iter().map(|known| (&known.intent.container, &known.intent.path)).collect();
    paths.sort_unstable();
    paths.dedup();
    assert_eq!(paths.len(), all.len(), "each path is reported once");
    let commits = |known: &Attachment| known.commits.len();
    assert!(
        state.intents.is_empty() || all.iter().map(commits).sum::<usize>() == state.commits.len()
    );
    if let Some((_, intent)) = state.intents.first() {
        let has_attachment =
            |(_, commit): &(PassedFd, CommitRecord)| belongs_to_an_attachment(commit, intent, &all);
        assert!(state.commits.iter().all(has_attachment), "no commit record is lost");
    }
    assert_eq!(
        state.attached_size().is_some(),
        all.iter().any(|known| known.committed().is_some())
    );
}

/// Whether the commit record belongs to one of the attachments.
fn belongs_to_an_attachment(
    commit: &CommitRecord,
    intent: &IntentRecord,
    all: &[Attachment],
) -> bool {
    let FurtherAttachment { container, path, .. } =
        commit.further.clone().unwrap_or_else(|| FurtherAttachment::new(intent));
    let readable = matches!(intent.access, Access::ReadOnly | Access::ReadWrite);
    readable && all.iter().any(|known| known.is_at(&container, &path))
}
