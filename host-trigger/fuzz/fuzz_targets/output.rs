//! Terminal output with names that a container, a guest or another QMP client chose: it is
//! printable lines, without characters that move the cursor or change the direction of text.
//!
//! The first byte of the input selects the kind of the rest: `p` a string, or the JSON result `r`
//! of a command that changes something, `l` of list and inspect, `s` of stats, `m` of repair.

#![no_main]

use host_trigger::{
    error::ErrorBody,
    fuzz,
    guest_holder::GuestHolder,
    output::{
        envelope::Envelope, listing::Listing, repair_report::RepairReport, report::Report,
        stats_report::StatsReport,
    },
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&kind, bytes)) = input.split_first() else { return };
    match kind {
        b'p' => check_string(&String::from_utf8_lossy(bytes)),
        b'r' => {
            let Ok(mut report) = serde_json::from_slice::<Envelope<Report>>(bytes) else { return };
            report.body.broken_holders.iter_mut().for_each(escape_holder);
            report
                .body
                .volumes
                .iter_mut()
                .for_each(|volume| (volume.id, volume.device_number) = own_values());
            assert_printable_lines(&fuzz::report(&report));
        }
        b'l' => {
            let Ok(listing) = serde_json::from_slice::<Envelope<Listing>>(bytes) else { return };
            let mut listing = listing.body;
            escape_message(&mut listing.guest_error);
            for volume in &mut listing.volumes {
                escape_message(&mut volume.guest_error);
                (volume.volume.id, volume.volume.device_number) = own_values();
                volume
                    .guest
                    .iter_mut()
                    .flat_map(|guest| guest.holders.iter_mut().flatten())
                    .for_each(escape_holder);
            }
            fuzz::listing(&listing).iter().for_each(|text| assert_printable_lines(text));
        }
        b's' => {
            let Ok(stats) = serde_json::from_slice::<Envelope<StatsReport>>(bytes) else { return };
            let mut stats = stats.body;
            escape_message(&mut stats.guest_error);
            for volume in &mut stats.volumes {
                escape_message(&mut volume.guest_error);
                volume.id = own_values().0;
            }
            let [text, prometheus] = fuzz::stats(&stats);
            assert_printable_lines(&text);
            assert!(
                prometheus.lines().all(|line| line.starts_with("# ") || line.starts_with("ecr_"))
            );
        }
        b'm' => {
            let Ok(mut repaired) = serde_json::from_slice::<Envelope<RepairReport>>(bytes) else {
                return;
            };
            repaired.body.volumes.iter_mut().for_each(|volume| volume.id = own_values().0);
            assert_printable_lines(&fuzz::repaired(&repaired));
        }
        _ => {}
    }
});

/// Checks that a string is escaped and cut, and that a plain one is unchanged.
fn check_string(text: &str) {
    let shown = fuzz::sanitize(text);
    assert_printable_lines(&shown);
    assert!(!shown.contains('\n') && shown.chars().count() <= 401 * 10, "{shown:?}");
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) && text.len() <= 400 {
        assert_eq!(shown, text, "plain text stays as it is");
    }
}

/// A volume ID and a device number. `ecr-runtime` makes them itself; others cannot choose them.
fn own_values() -> (String, String) {
    ("0123456789abcdef".to_owned(), "8:16".to_owned())
}

/// Escapes the names of a holder. As the messages of errors, they are escaped when they are
/// received.
fn escape_holder(holder: &mut GuestHolder) {
    for text in [&mut holder.kind, &mut holder.command, &mut holder.container, &mut holder.detail] {
        *text = fuzz::sanitize(text);
    }
}

fn escape_message(error: &mut Option<ErrorBody>) {
    error.iter_mut().for_each(|error| error.message = fuzz::sanitize(&error.message));
}

fn assert_printable_lines(text: &str) {
    // Unicode's property Bidi_Control.
    let is_bidi_control = |c| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let bad = text.chars().find(|&c| c != '\n' && (c.is_control() || is_bidi_control(c)));
    assert_eq!(bad, None, "{text:?}");
}
