//! What a terminal gets to see of names that a container, a guest or somebody with QEMU's socket
//! chose: lines, and nothing that moves a cursor or turns text around.
//!
//! The first byte chooses: `p` a string, else JSON of a result: `r` of a verb that changes, `l` of
//! list and inspect, `s` of stats, `m` of repair.

#![no_main]

use host_trigger::{
    fuzz,
    guest_holder::GuestHolder,
    listing::Listing,
    output::{FailureBody, Report},
    repaired::Repaired,
    stats::Counted,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&kind, bytes)) = input.split_first() else { return };
    match kind {
        b'p' => string(&String::from_utf8_lossy(bytes)),
        b'r' => {
            let Ok(mut report) = serde_json::from_slice::<Report>(bytes) else { return };
            report.broke.iter_mut().for_each(enter);
            report.volumes.iter_mut().for_each(|volume| (volume.id, volume.device_number) = ours());
            assert_lines(&fuzz::report(&report));
        }
        b'l' => {
            let Ok(mut listing) = serde_json::from_slice::<Listing>(bytes) else { return };
            refused(&mut listing.guest_error);
            for volume in &mut listing.volumes {
                refused(&mut volume.guest_error);
                (volume.volume.id, volume.volume.device_number) = ours();
                volume
                    .guest
                    .iter_mut()
                    .flat_map(|guest| guest.holders.iter_mut().flatten())
                    .for_each(enter);
            }
            fuzz::listing(&listing).iter().for_each(|text| assert_lines(text));
        }
        b's' => {
            let Ok(mut counted) = serde_json::from_slice::<Counted>(bytes) else { return };
            refused(&mut counted.guest_error);
            for volume in &mut counted.volumes {
                refused(&mut volume.guest_error);
                volume.id = ours().0;
            }
            let [people, prometheus] = fuzz::counted(&counted);
            assert_lines(&people);
            assert!(
                prometheus.lines().all(|line| line.starts_with("# ") || line.starts_with("ecr_"))
            );
        }
        b'm' => {
            let Ok(mut repaired) = serde_json::from_slice::<Repaired>(bytes) else { return };
            repaired.volumes.iter_mut().for_each(|mended| mended.id = ours().0);
            assert_lines(&fuzz::repaired(&repaired));
        }
        _ => {}
    }
});

fn string(text: &str) {
    let shown = fuzz::printable(text);
    assert_lines(&shown);
    assert!(!shown.contains('\n') && shown.chars().count() <= 401 * 10, "{shown:?}");
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) && text.len() <= 400 {
        assert_eq!(shown, text, "what is plain stays as it is");
    }
}

/// An id and a device number are never anybody else's words.
fn ours() -> (String, String) {
    ("0123456789abcdef".to_owned(), "8:16".to_owned())
}

/// Names of holders and messages of errors are escaped where they come in.
fn enter(holder: &mut GuestHolder) {
    for text in [&mut holder.kind, &mut holder.command, &mut holder.container, &mut holder.detail] {
        *text = fuzz::printable(text);
    }
}

fn refused(error: &mut Option<FailureBody>) {
    error.iter_mut().for_each(|error| error.message = fuzz::printable(&error.message));
}

fn assert_lines(text: &str) {
    // See Unicode's property Bidi_Control.
    let turns = |c| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let bad = text.chars().find(|&c| c != '\n' && (c.is_control() || turns(c)));
    assert_eq!(bad, None, "{text:?}");
}
