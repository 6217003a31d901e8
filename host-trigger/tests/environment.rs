//! What a command inherits from its caller, and what must not matter.

mod common;

use std::process::Stdio;

use common::{
    Host,
    shell::{after, run_to},
    volume::{Image, Loop},
};
use rstest::rstest;

const MIB: u64 = 1 << 20;

#[rstest]
#[case::usual("")]
#[case::removed_directory("gone=$(mktemp -d); cd \"$gone\"; rmdir \"$gone\"")]
#[case::empty_environment("exec env -i \"$0\" \"$@\"")]
#[case::odd_locale("export LC_ALL=tr_TR.ISO-8859-9 LANG=xx_XX LANGUAGE=::")]
#[case::strict_umask("umask 077")]
#[case::strictest_umask("umask 777")]
#[case::closed_input("exec <&-")]
#[case::closed_output("exec >&-")]
#[case::closed_error("exec 2>&-")]
#[case::closed_streams("exec <&- >&- 2>&-")]
#[tokio::test]
async fn what_the_caller_leaves_does_not_matter(#[case] prelude: &str) {
    let mut host = Host::boot().await;
    let (device, image) = (Loop::of(MIB), Image::of(MIB));
    let clean = host.snapshot().await;
    let volumes = [(device.path(), "/dev/xvda"), (image.path(), "/dev/xvdb")];
    let (status, stderr) =
        run_to(&mut after(prelude, &host.command(&volumes, &[])), Stdio::null()).await;
    assert_eq!(status, Some(0), "{stderr}");
    assert_eq!(host.agent.attached_paths(), ["/dev/xvda", "/dev/xvdb"]);
    let listed = host.verb("list", &[]).await.listing();
    for listed in &listed.body.volumes {
        let known = host.agent.attachment(&listed.volume.id).unwrap();
        assert_eq!(known.mode, 0o660, "the caller's umask is not the container's");
    }
    for path in ["/dev/xvda", "/dev/xvdb"] {
        let unplug = host.verb_command("hot-unplug", &["--device-path", path]);
        let (status, stderr) = run_to(&mut after(prelude, &unplug), Stdio::null()).await;
        assert_eq!(status, Some(0), "{stderr}");
    }
    assert_eq!(host.snapshot().await, clean);
}
