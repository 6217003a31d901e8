//! Pods by name, with newer container engines than the level `ci` has.

use rstest::rstest;

use super::super::pods::names_lead_to_what_runs_now;

#[rstest]
#[case::containerd_1_7("trixie", "1.7.")]
#[case::containerd_2("forky", "2.")]
#[tokio::test]
async fn names_lead_to_what_runs_now_in(#[case] suite: &str, #[case] version: &str) {
    names_lead_to_what_runs_now(suite, version).await;
}
