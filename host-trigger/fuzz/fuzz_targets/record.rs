//! Records: the free texts of the descriptors in QEMU's descriptor sets. Other clients keep their
//! own texts there. A record that was read is written back unchanged.

#![no_main]

use block_volume_qmp::PassedFd;
use host_trigger::{
    presence::{Presence, Use},
    record::{Access, FurtherUse, Intent, PREFIX, Placement, Record},
    volume::VolumeId,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = str::from_utf8(input) else { return };
    if let Some(id) = VolumeId::of_name(text) {
        assert!(text == id.device() || text == id.node());
    }
    // The texts of one descriptor set, one per line.
    let mut presence = Presence { node: Some(1 << 20), device: true, ..Presence::default() };
    for (fd, line) in (0..).zip(text.lines()) {
        let Some(record) = Record::from_opaque(line) else { continue };
        assert!(line.starts_with(PREFIX));
        assert_eq!(Record::from_opaque(&record.to_opaque()).as_ref(), Some(&record));
        match record {
            Record::Intent(intent) => presence.intents.push((7, intent)),
            Record::Placement(placement) => {
                let outcome = placement.outcome();
                assert_eq!(outcome.parents_made, placement.parents_made);
                presence.placements.push((PassedFd { set: 7, fd }, placement));
            }
        }
    }
    assert_uses(&presence);
});

/// Asserts that each record belongs to one attachment.
fn assert_uses(presence: &Presence) {
    let uses = presence.uses();
    assert_eq!(uses.is_empty(), presence.intents.is_empty());
    let mut paths: Vec<_> =
        uses.iter().map(|used| (&used.intent.container, &used.intent.path)).collect();
    paths.sort_unstable();
    paths.dedup();
    assert_eq!(paths.len(), uses.len(), "each path is reported once");
    let commits = |used: &Use| used.placements.len();
    assert!(
        presence.intents.is_empty()
            || uses.iter().map(commits).sum::<usize>() == presence.placements.len()
    );
    if let Some((_, intent)) = presence.intents.first() {
        let has_use =
            |(_, placement): &(PassedFd, Placement)| is_of_a_use(placement, intent, &uses);
        assert!(presence.placements.iter().all(has_use), "no commit record is lost");
    }
    assert_eq!(presence.plugged().is_some(), uses.iter().any(|used| used.committed().is_some()));
}

/// Whether the commit record belongs to one of the attachments.
fn is_of_a_use(placement: &Placement, intent: &Intent, uses: &[Use]) -> bool {
    let FurtherUse { container, path, .. } =
        placement.further.clone().unwrap_or_else(|| FurtherUse::new(intent));
    let readable = matches!(intent.access, Access::ReadOnly | Access::ReadWrite);
    readable && uses.iter().any(|used| used.is_at(&container, &path))
}
