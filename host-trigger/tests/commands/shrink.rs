//! `resize --allow-shrink` while something in the guest relies on the part that would be lost.

use crate::common::{Host, volume::Image};
use host_trigger::output::envelope::Outcome;
use rstest::rstest;

const MIB: u64 = 1 << 20;
const SHRINK: [&str; 7] =
    ["--container", "c1", "--device-path", "/dev/xvda", "--size", "2MiB", "--allow-shrink"];

#[rstest]
#[case("mount", "/mnt")]
#[case("dm", "dm-0")]
#[case("md", "md0")]
#[case("loop", "loop0")]
#[case("swap", "/dev/sda")]
#[case("unknown", "something in the guest")]
#[tokio::test]
async fn a_volume_that_something_relies_on_is_not_made_smaller(
    #[case] kind: &'static str,
    #[case] detail: &'static str,
) {
    let mut host = Host::boot().await;
    let image = Image::of(4 * MIB);
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    // More processes than a message or a reply of the host has room for.
    *host.agent.holder_commands.lock().unwrap() = vec!["dd".to_owned(); 300];
    *host.agent.other_holders.lock().unwrap() = vec![(kind, detail)];
    let (before, changes) = (host.snapshot().await, host.changes());
    for more in [&[][..], &["--dry-run"]] {
        let ran = host.verb("resize", &[&SHRINK[..], more].concat()).await;
        ran.assert_fails("busy", 5);
        let error = ran.failure();
        assert!(error.message.contains(detail) && error.message.contains("2097152"), "{error:?}");
        assert_eq!((error.holders.len(), error.holders[0].kind.as_str()), (1, kind));
        assert!(error.remedy.unwrap().contains("unmount it"));
    }
    assert_eq!((host.snapshot().await, host.changes(), image.size()), (before, changes, 4 * MIB));
    assert!(host.agent.requested_sizes.lock().unwrap().is_empty());

    let grow = ["--container", "c1", "--device-path", "/dev/xvda", "--size", "8MiB"];
    assert_eq!(host.verb("resize", &grow).await.report().result, Outcome::Resized);
    host.agent.other_holders.lock().unwrap().clear();
    let shrunk = host.verb("resize", &SHRINK).await.report();
    assert_eq!((shrunk.result, image.size()), (Outcome::Resized, 2 * MIB), "a process may go on");
}
