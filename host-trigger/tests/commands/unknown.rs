//! The state `unknown`, against a real QEMU: a volume whose truth the guest could not tell is
//! neither attached nor gone. `list` and `inspect` print everything and end with 15; no other
//! command acts on a guess.

use crate::common::{Host, volume::Image};
use block_volume_api::block_volume::{ContainerStatus, Reason};
use host_trigger::{
    ops::{
        container_state::ContainerState,
        recovery::{Action, StateAfter},
        volume::{State, UnknownCause},
    },
    output::{envelope::Outcome, repair_report::Found},
};
use rstest::rstest;

const MIB: u64 = 1 << 20;
const UNREACHABLE: [&str; 2] = ["--agent", "unix:///nonexistent/agent.sock"];

fn unknown(cause: UnknownCause) -> State {
    State::Unknown { cause }
}

#[rstest]
#[case(
    ContainerStatus::CONTAINER_STATUS_PAUSED,
    UnknownCause::ContainerPaused,
    ContainerState::Paused
)]
#[case(
    ContainerStatus::CONTAINER_STATUS_UNREACHABLE,
    UnknownCause::ContainerUnreachable,
    ContainerState::Unreachable
)]
#[tokio::test]
async fn a_container_that_cannot_be_entered_is_not_gone(
    #[case] status: ContainerStatus,
    #[case] cause: UnknownCause,
    #[case] state: ContainerState,
    #[values("list", "inspect")] verb: &str,
) {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    let before = host.snapshot().await;
    *host.agent.container_status.lock().unwrap() = Some(status);
    let at: &[&str] = if verb == "list" { &[] } else { &["--device-path", "/dev/xvda"] };
    let listing = host.verb(verb, at).await.listing_with_unknown();
    let listed = &listing.body.volumes[0];
    assert_eq!((listed.state, listing.result), (unknown(cause), Outcome::Error));
    let guest = listed.guest.as_ref().unwrap();
    assert_eq!((guest.container_state, guest.disk_present), (state, true));
    assert!(listed.guest_error.is_some() && listing.body.guest_error.is_none());

    // Repair does not act on a guess.
    let repaired = host.verb("repair", &[]).await.repaired();
    let volume = &repaired.body.volumes[0];
    assert_eq!(repaired.error.unwrap().exit_code, 8);
    assert_eq!(
        (volume.found, volume.action, volume.state_after),
        (Found::Volume(unknown(cause)), Action::Failed, StateAfter::Unknown)
    );
    assert_eq!(host.snapshot().await, before);
    assert!(host.agent.detached.lock().unwrap().is_empty());
    // Nor does a dry run say "unchanged".
    let plug = host.plug(image.path(), "/dev/xvda", &["--dry-run"]).await;
    assert!(plug.exit_code != Some(0), "{plug:?}");
}

#[tokio::test]
async fn one_volume_that_cannot_be_told_leaves_the_others_told() {
    let mut host = Host::boot().await;
    let images = [Image::of(MIB), Image::of(MIB)];
    host.plug(images[0].path(), "/dev/xvda", &[]).await.report();
    host.plug(images[1].path(), "/dev/xvdb", &[]).await.report();
    let before = host.snapshot().await;
    *host.agent.untold.lock().unwrap() = Some(("/dev/xvda".into(), "EIO \u{1b}[2J".into()));
    let listing = host.verb("list", &[]).await.listing_with_unknown();
    let states: Vec<_> = listing.body.volumes.iter().map(|listed| listed.state).collect();
    assert_eq!(states, [unknown(UnknownCause::GuestError), State::Attached]);
    let error = listing.body.volumes[0].guest_error.as_ref().unwrap();
    assert!(error.message.contains("EIO \\u{1b}[2J"), "{}", error.message);
    let id = &listing.body.volumes[0].volume.id;
    assert!(listing.error.unwrap().message.ends_with(&format!("of volume {id}")));

    let repaired = host.verb("repair", &[]).await.repaired();
    let actions: Vec<_> = repaired.body.volumes.iter().map(|volume| volume.action).collect();
    assert_eq!(actions.iter().filter(|action| **action == Action::Kept).count(), 1);
    assert_eq!(actions.iter().filter(|action| **action == Action::Failed).count(), 1);
    assert_eq!(host.snapshot().await, before);
}

/// One whose container's file system never answers takes a part of the time, not all of it.
#[tokio::test]
async fn one_volume_that_is_never_told_leaves_time_for_the_others() {
    let host = Host::boot().await;
    let images = [Image::of(MIB), Image::of(MIB)];
    host.plug(images[0].path(), "/dev/xvda", &[]).await.report();
    host.plug(images[1].path(), "/dev/xvdb", &[]).await.report();
    *host.agent.hangs_on_inspect.lock().unwrap() = Some("/dev/xvda".into());
    let listing = host.verb("list", &["--timeout", "4s"]).await.listing_with_unknown();
    let states: Vec<_> = listing.body.volumes.iter().map(|listed| listed.state).collect();
    assert_eq!(states, [unknown(UnknownCause::GuestError), State::Attached]);
    assert_eq!(listing.body.volumes[0].guest_error.as_ref().unwrap().reason, "timed_out");
}

#[tokio::test]
async fn without_the_guest_nothing_is_attached() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    let plugged = host.plug(image.path(), "/dev/xvda", &[]).await.report();
    *host.agent.inspect_failure.lock().unwrap() = Some(Reason::REASON_UNSUPPORTED);
    let listing = host.verb("list", &[]).await.listing_with_unknown();
    assert_eq!(listing.body.guest_error, None);
    assert_eq!(listing.body.volumes[0].guest_error.as_ref().unwrap().reason, "unsupported");
    assert_eq!(listing.body.volumes[0].state, unknown(UnknownCause::GuestError));

    let listing = host.verb("list", &UNREACHABLE).await.listing_with_unknown();
    assert_eq!(listing.body.guest_error.as_ref().unwrap().reason, "agent_unreachable");
    let listed = &listing.body.volumes[0];
    assert_eq!((listed.state, &listed.guest), (unknown(UnknownCause::GuestUnreachable), &None));
    assert_eq!(listed.volume.guest_device, plugged.body.volumes[0].guest_device);
    let text = crate::common::run(
        tokio::process::Command::new(env!("CARGO_BIN_EXE_ecr-runtime"))
            .arg("--run-dir")
            .arg(host.path(""))
            .args(["block-volume", "list", "--sandbox", "s1"])
            .args(UNREACHABLE),
    )
    .await;
    assert_eq!(text.exit_code, Some(15));
    assert!(text.stdout.contains("\nthe guest was not asked: "), "{text:?}");
    assert!(text.stderr.contains("error: the guest could not tell the state of"), "{text:?}");
}

/// A volume of which the guest cannot have anything needs no guest.
#[tokio::test]
async fn what_qemu_alone_decides_is_not_unknown() {
    let mut host = Host::boot().await;
    assert_eq!(host.verb("list", &UNREACHABLE).await.listing().body.volumes, []);
    let record = concat!(
        r#"ecrblk1:{"v":1,"id":"0123456789abcdef","container":"c1","path":"/dev/xvda","#,
        r#""source":"/dev/loop0","size":512,"access":"rw","mode":432,"tool":"0","run":"r"}"#
    );
    host.add_fd(record, None).await;
    let listing = host.verb("list", &UNREACHABLE).await.listing();
    assert_eq!(listing.body.volumes[0].state, State::Incomplete);
}
