//! The caps on single steps are made for the default `--timeout`. A longer one lifts them.

use std::{os::unix::net::UnixListener, time::Duration};

use crate::common::Host;
use rstest::rstest;

#[rstest]
#[case("1s", 1.0)]
#[case("10s", 2.0)]
#[case("60s", 4.0)]
#[tokio::test]
async fn a_qemu_that_does_not_greet_has_the_users_time(
    #[case] timeout: &str,
    #[case] seconds: f64,
) {
    let host = Host::boot().await;
    let path = host.path("silent.sock");
    let _silent = UnixListener::bind(&path).unwrap();
    host.record_pid(std::process::id());
    let ran = host.verb("list", &["--timeout", timeout, "--qmp", path.to_str().unwrap()]).await;
    ran.assert_fails("timed_out", 7);
    assert!(ran.took >= Duration::from_secs_f64(seconds), "{ran:?}");
    assert!(ran.took < Duration::from_secs_f64(seconds + 10.0), "{ran:?}");
}

#[tokio::test]
async fn an_agent_that_does_not_respond_has_the_users_time() {
    let host = Host::boot().await;
    let image = crate::common::volume::Image::of(1 << 20);
    let path = host.path("muxer.sock");
    // It accepts, and never answers to CONNECT.
    let _silent = UnixListener::bind(&path).unwrap();
    let agent = format!("hvsock://{}:1024", path.display());
    let ran = host.plug(image.path(), "/dev/xvda", &["--timeout", "50s", "--agent", &agent]).await;
    ran.assert_fails("timed_out", 7);
    assert!(ran.took >= Duration::from_secs(5), "{ran:?}");
    assert_eq!(ran.failure().remedy.as_deref(), Some("a longer --timeout may help"));
}
