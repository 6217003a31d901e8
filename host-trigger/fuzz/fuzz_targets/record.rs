//! The free texts beside QEMU's descriptors: others keep texts of theirs in the same table, and
//! what is read is written back.

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
    // Texts of one set, one a line.
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

fn assert_uses(presence: &Presence) {
    let uses = presence.uses();
    assert_eq!(uses.is_empty(), presence.intents.is_empty());
    let mut places: Vec<_> =
        uses.iter().map(|used| (&used.intent.container, &used.intent.path)).collect();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), uses.len(), "each place is told once");
    let of = |used: &Use| used.placements.len();
    assert!(
        presence.intents.is_empty()
            || uses.iter().map(of).sum::<usize>() == presence.placements.len()
    );
    if let Some((_, intent)) = presence.intents.first() {
        let use_of = |(_, placement): &(PassedFd, Placement)| is_place_of(placement, intent, &uses);
        assert!(presence.placements.iter().all(use_of), "no outcome is lost");
    }
    assert_eq!(presence.plugged().is_some(), uses.iter().any(|used| used.committed().is_some()));
}

fn is_place_of(placement: &Placement, intent: &Intent, uses: &[Use]) -> bool {
    let FurtherUse { container, path, .. } =
        placement.further.clone().unwrap_or_else(|| FurtherUse::new(intent));
    let readable = matches!(intent.access, Access::ReadOnly | Access::ReadWrite);
    readable && uses.iter().any(|used| used.is_at(&container, &path))
}
