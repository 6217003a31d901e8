//! The command line as [clap](https://docs.rs/clap) parses it: which words and flags are accepted.

use clap::CommandFactory;
use rstest::rstest;

use super::*;

#[test]
fn the_command_is_well_formed() {
    Cli::command().debug_assert();
}

#[rstest]
#[case(&["hot-unplug", "--device-path", "/d"], true)]
#[case(&["hot-unplug", "--volume", "0123456789abcdef"], true)]
#[case(&["hot-unplug"], false)]
#[case(&["hot-unplug", "--volume", "0123456789abcdef", "--device-path", "/d"], false)]
#[case(&["hot-unplug", "--volume", "0123456789ABCDEF"], false)]
#[case(&["hot-unplug", "--volume", "01234567"], false)]
#[case(&["hot-unplug", "--device-path", "/d", "--wait", "9m"], true)]
#[case(&["hot-unplug", "--device-path", "/d", "--wait", "541s"], false)]
#[case(&["hot-unplug", "--device-path", "/d", "--wait", "0"], false)]
#[case(&["hot-unplug", "--device-path", "/d", "--force"], true)]
#[case(&["hot-unplug", "--device-path", "/d", "--force", "--wait", "1s"], false)]
#[case(&["inspect"], false)]
#[case(&["list"], true)]
#[case(&["resize"], false)]
#[case(&["throttle", "--iops", "5"], false)]
#[case(&["stats"], true)]
#[case(&["stats", "--prometheus"], true)]
#[case(&["stats", "--prometheus", "--output", "json"], false)]
#[case(&["stats", "--prometheus", "--output-file", "f"], true)]
#[case(&["stats", "--output-file", "f"], false)]
#[case(&["stats", "--output-file", "f", "--output", "json"], false)]
#[case(&["stats", "--volume", "0123456789abcdef", "--device-path", "/d"], false)]
fn flags_that_fit_together_are_accepted(#[case] words: &[&str], #[case] accepted: bool) {
    let line = [&["x", "block-volume"][..], words, &["--sandbox", "s"]].concat();
    assert_eq!(Cli::try_parse_from(line).is_ok(), accepted);
}

#[test]
fn the_run_directory_is_accepted_before_and_after_the_verb() {
    let verb = ["--container", "c", "--block-volume", "/b", "--device-path", "/d"];
    for line in [
        [&["x", "--run-dir", "/r", "block-volume", "hot-plug"][..], &verb].concat(),
        [&["x", "block-volume", "hot-plug", "--run-dir", "/r"][..], &verb].concat(),
    ] {
        assert_eq!(Cli::try_parse_from(line).unwrap().run_dir, Some("/r".into()));
    }
}
