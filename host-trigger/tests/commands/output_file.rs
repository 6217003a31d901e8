//! `stats --prometheus --output-file`: whoever reads the file sees the old text or the new one,
//! whole.

use std::{
    fs,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt, symlink},
        net::UnixListener,
    },
    path::Path,
};

use crate::common::{Host, RunOutput, run, shell::after, volume::Image};
use rstest::rstest;
use tokio::process::Command;

const MIB: u64 = 1 << 20;

fn stats(host: &Host, file: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ecr-runtime"));
    command.arg("--run-dir").arg(host.path("")).args(["block-volume", "stats", "--sandbox", "s1"]);
    command.arg("--prometheus").arg("--output-file").arg(file);
    command
}

async fn boot() -> (Host, Image) {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    fs::create_dir(host.path("textfile")).unwrap();
    (host, image)
}

/// The names in the directory of the file.
fn names(host: &Host) -> Vec<String> {
    let entries = fs::read_dir(host.path("textfile")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[track_caller]
fn assert_fails(ran: &RunOutput, parts: &[&str]) {
    assert_eq!((ran.exit_code, ran.stdout.as_str()), (Some(1), ""), "{ran:?}");
    assert!(ran.stderr.starts_with("error: the result could not be written to \""), "{ran:?}");
    parts.iter().for_each(|part| assert!(ran.stderr.contains(part), "{part}: {ran:?}"));
}

#[rstest]
#[case::usual("umask 022", 0o644)]
#[case::strict("umask 077", 0o600)]
#[case::lax("umask 0", 0o644)]
#[tokio::test]
async fn the_file_is_replaced_as_a_whole(#[case] umask: &str, #[case] mode: u32) {
    let (host, _image) = boot().await;
    let file = host.path("textfile/s1.prom");
    let ran = run(&mut after(umask, &stats(&host, &file))).await;
    assert_eq!((ran.exit_code, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), "", ""));
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("ecr_block_volume_guest_up{") && text.ends_with('\n'), "{text}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, mode);
    // A reader of the old file goes on reading it.
    let mut old = fs::File::open(&file).unwrap();
    assert_eq!(run(&mut after(umask, &stats(&host, &file))).await.exit_code, Some(0));
    assert_eq!(std::io::read_to_string(&mut old).unwrap(), text);
    assert_eq!(names(&host), ["s1.prom"]);
}

#[tokio::test]
async fn a_name_without_a_directory_is_in_the_current_one() {
    let (host, _image) = boot().await;
    let mut command = stats(&host, Path::new("s1.prom"));
    let ran = run(command.current_dir(host.path("textfile"))).await;
    assert_eq!(ran.exit_code, Some(0), "{ran:?}");
    assert_eq!(names(&host), ["s1.prom"]);
}

#[tokio::test]
async fn after_a_failure_the_old_file_is_as_it_was_and_nothing_is_left() {
    let (host, _image) = boot().await;
    let file = host.path("textfile/s1.prom");
    fs::write(&file, "old").unwrap();
    // The limit applies to regular files only: the sockets work.
    let ran = run(&mut after("ulimit -f 0", &stats(&host, &file))).await;
    assert_fails(&ran, &["/textfile/s1.prom\"", "File too large"]);
    let ran = run(stats(&host, &file).args(["--container", "c9"])).await;
    assert_eq!(ran.exit_code, Some(3), "{ran:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "old");
    assert_eq!(names(&host), ["s1.prom"]);
}

#[rstest]
#[case::missing_directory("missing/s1.prom", "No such file or directory")]
#[case::directory("textfile", "a directory")]
#[case::file_as_a_directory("sbs/s1/persist.json/s1.prom", "Not a directory")]
#[case::socket("socket", "a socket")]
#[case::link("link", "a symbolic link")]
#[case::device("/dev/null", "a character device")]
#[tokio::test]
async fn only_a_regular_file_is_replaced(#[case] name: &str, #[case] why: &str) {
    let (host, _image) = boot().await;
    let _socket = UnixListener::bind(host.path("socket")).unwrap();
    fs::write(host.path("target"), "old").unwrap();
    symlink(host.path("target"), host.path("link")).unwrap();
    assert_fails(&run(&mut stats(&host, &host.path(name))).await, &[why, name]);
    assert_eq!(fs::read_to_string(host.path("target")).unwrap(), "old");
    assert!(fs::symlink_metadata(host.path("link")).unwrap().is_symlink());
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    assert!(names(&host).is_empty());
}

#[rstest]
#[case::text(&["stats", "--output-file", "s1.prom"])]
#[case::json(&["stats", "--output", "json", "--output-file", "s1.prom"])]
#[case::json_and_prometheus(&["stats", "--prometheus", "--output", "json", "--output-file", "x"])]
#[case::another_verb(&["list", "--output-file", "s1.prom"])]
#[tokio::test]
async fn without_prometheus_it_is_a_usage_error(#[case] words: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ecr-runtime"));
    let ran = run(command.arg("block-volume").args(words).args(["--sandbox", "s1"])).await;
    assert_eq!(ran.exit_code, Some(2), "{ran:?}");
    if words.contains(&"json") {
        ran.assert_fails("usage", 2);
    }
}
