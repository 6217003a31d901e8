//! The JSON form and the lines for people of `list` and `inspect`.

use super::*;
use crate::{
    ops::{
        container_state::ContainerState,
        place::Place,
        volume::{Cause, GuestView, State, UnknownCause, Volume},
    },
    output::envelope::{Envelope, Outcome, Timings},
    qemu::throttle::{Limit, Limits},
    sample,
};

const GONE: State = State::Stale { cause: Cause::ContainerGone };

fn listed(state: State, path: &str) -> ListedVolume {
    ListedVolume {
        volume: Volume {
            container: "0123456789abcdef0123456789abcdef".into(),
            place: Place::Device { device_path: path.into() },
            source: "/dev/sdb".into(),
            ..sample::volume()
        },
        state,
        guest: Some(GuestView {
            disk_present: true,
            size: 64 << 20,
            read_only: true,
            container_running: true,
            container_state: ContainerState::Running,
            node_present: true,
            allowed: true,
            leftovers: Vec::new(),
            holders: None,
            holders_unknown: String::new(),
            file_system: None,
        }),
        guest_error: None,
    }
}

fn listing(volumes: Vec<ListedVolume>) -> Listing {
    Listing { volumes, ..Listing::default() }
}

fn error() -> ErrorBody {
    ErrorBody {
        reason: "busy".into(),
        exit_code: 5,
        message: "no".into(),
        remedy: None,
        holders: Vec::new(),
    }
}

#[test]
fn the_json_form_is_stable() {
    let expected = concat!(
        r#"{"schema":1,"command":"list","result":"listed","dry_run":false,"volumes":[{"id":"0123456789abcdef","sandbox":"s1","#,
        r#""container":"0123456789abcdef0123456789abcdef","device_path":"/dev/xvda","source":"/dev/sdb","#,
        r#""source_device":"/dev/sdb","size":67108864,"read_only":true,"shared":false,"#,
        r#""scsi":{"controller":"scsi0","target":255,"lun":3},"guest_device":"sda","device_number":"8:0","#,
        r#""device_filter":"none","node":"mknod","state":"stale","cause":"container_gone","guest":{"disk_present":true,"#,
        r#""size":67108864,"read_only":true,"container_running":true,"container_state":"running","node_present":true,"allowed":true,"#,
        r#""leftovers":[]}}],"timings_us":{"total":7}}"#
    );
    let listing = Envelope {
        timings_us: Some(Timings(vec![("total".into(), 7)])),
        ..Envelope::new("list", Outcome::Listed, listing(vec![listed(GONE, "/dev/xvda")]))
    };
    assert_eq!(serde_json::to_string(&listing).unwrap(), expected);
    assert_eq!(serde_json::from_str::<Envelope<Listing>>(expected).unwrap(), listing);
}

#[test]
fn columns_are_as_wide_as_their_widest_cell_and_names_are_escaped() {
    let mut volumes = vec![listed(State::Attached, "/dev/xvda"), listed(GONE, "/dev/\u{1b}[2J")];
    let iops = Some(Limit { limit: 100, ..Limit::default() });
    volumes[1].volume.throttle = Limits { iops, ..Limits::default() };
    let expected = "\
VOLUME            STATE                  SIZE       CONTAINER     PATH            SOURCE    GUEST  LIMITS
0123456789abcdef  attached               64 MiB ro  0123456789ab  /dev/xvda       /dev/sdb  sda    -
0123456789abcdef  stale: container gone  64 MiB ro  0123456789ab  /dev/\\u{1b}[2J  /dev/sdb  sda    iops 100";
    assert_eq!(table(&listing(volumes)), expected);
}

#[test]
fn unknown_values_are_dashes_and_an_empty_list_is_a_sentence() {
    let mut incomplete = listed(State::Incomplete, "");
    incomplete.volume.source_device = "".into();
    incomplete.volume.guest_device.clear();
    let text = table(&listing(vec![incomplete]));
    assert!(text.ends_with("0123456789ab  -     -       -      -"), "{text}");
    assert_eq!(table(&listing(Vec::new())), "no volumes are attached");
}

#[test]
fn a_guest_that_was_not_asked_is_reported() {
    let mut volume = listed(State::Attached, "/dev/xvda");
    volume.guest_error = Some(error());
    let listing = Listing { guest_error: Some(error()), ..listing(vec![volume]) };
    for text in [table(&listing), details(&listing)] {
        assert!(text.contains("\nthe guest was not asked: no"), "{text}");
        assert!(
            text.ends_with("\nthe guest cannot tell about volume 0123456789abcdef: no"),
            "{text}"
        );
    }
}

#[test]
fn what_was_not_told_is_unknown_and_not_a_no() {
    let paused = State::Unknown { cause: UnknownCause::ContainerPaused };
    let mut volume = listed(paused, "/dev/xvda");
    volume.guest_error = Some(error());
    let guest = volume.guest.as_mut().unwrap();
    (guest.node_present, guest.container_running) = (false, false);
    guest.container_state = ContainerState::Paused;
    guest.holders_unknown = "busy".into();
    let listing = listing(vec![volume.clone(), volume]);
    let text = details(&listing);
    for line in ["unknown: container paused", "paused", "unknown: busy"] {
        assert!(text.contains(&format!(" {line}\n")), "{line}: {text}");
    }
    assert!(text.contains("\n  node        unknown\n"), "{text}");
    let unknown = listing.unknown().unwrap();
    assert_eq!((unknown.class().reason, unknown.class().exit_status.code()), ("state_unknown", 15));
    assert!(unknown.message().ends_with("of volume 0123456789abcdef"), "{}", unknown.message());
    let json = serde_json::to_string(&listing).unwrap();
    assert!(json.contains(r#""state":"unknown","cause":"container_paused""#), "{json}");
    assert_eq!(serde_json::from_str::<Listing>(&json).unwrap(), listing);
}

#[test]
fn a_listing_in_which_everything_was_told_is_no_error() {
    let told = vec![listed(State::Attached, "/dev/a"), listed(State::Abandoned, "/dev/b")];
    assert!(listing(told).unknown().is_none());
}

#[test]
fn details_have_a_line_for_each_fact() {
    let text = details(&listing(vec![listed(State::Attached, "/dev/xvda")]));
    assert!(text.starts_with("volume        0123456789abcdef\nstate         attached\n"), "{text}");
    assert!(text.contains("\nsize          64 MiB (67108864 bytes, read-only)\n"), "{text}");
    assert!(text.contains("\nin the guest\n  disk        yes\n  container   running\n"), "{text}");
}

#[test]
fn a_container_in_a_record_is_escaped_for_people() {
    let mut volume = listed(State::Incomplete, "/dev/xvda");
    volume.volume.container = "\u{1b}[2J".into();
    let listing = listing(vec![volume]);
    assert!(!table(&listing).contains('\u{1b}') && !details(&listing).contains('\u{1b}'));
}
