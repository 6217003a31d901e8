use rstest::rstest;

use super::*;

const POD: &str = "shop/db-0";

/// `ID NAMESPACE/NAME ATTEMPT ready|gone`, one a word group.
fn sandboxes(lines: &[&str]) -> Vec<PodSandbox> {
    let parse = |line: &&str| {
        let words: Vec<_> = line.split(' ').collect();
        PodSandbox {
            id: words[0].to_owned(),
            pod: words[1].parse().unwrap(),
            uid: String::new(),
            attempt: words[2].parse().unwrap(),
            is_ready: words[3] == "ready",
            handler: String::new(),
        }
    };
    lines.iter().map(parse).collect()
}

/// `ID NAME ATTEMPT running|exited|created`.
fn pod_containers(lines: &[&str]) -> Vec<PodContainer> {
    let parse = |line: &&str| {
        let words: Vec<_> = line.split(' ').collect();
        let state = match words[3] {
            "running" => ContainerState::Running,
            "exited" => ContainerState::Exited,
            _ => ContainerState::Created,
        };
        let (id, name) = (words[0].to_owned(), words[1].to_owned());
        let (sandbox, attempt) = ("s1".to_owned(), words[2].parse().unwrap());
        PodContainer { id, sandbox, name, attempt, state }
    };
    lines.iter().map(parse).collect()
}

fn reason(error: &Error) -> &'static str {
    error.class().reason
}

#[rstest]
#[case::only(&["s1 shop/db-0 0 ready"], Ok("s1"))]
#[case::old_and_new(&["s1 shop/db-0 0 gone", "s2 shop/db-0 1 ready"], Ok("s2"))]
#[case::made_again(&["s2 shop/db-0 0 ready", "s1 shop/db-0 3 gone"], Ok("s2"))]
#[case::two(&["s1 shop/db-0 0 ready", "s2 shop/db-0 1 ready"], Err("ambiguous_pod"))]
#[case::gone(&["s1 shop/db-0 0 gone"], Err("pod_not_ready"))]
#[case::other_namespace(&["s1 test/db-0 0 ready"], Err("pod_not_found"))]
#[case::none(&[], Err("pod_not_found"))]
fn the_sandbox_that_is_ready_is_meant(
    #[case] all: &[&str],
    #[case] expected: Result<&str, &'static str>,
) {
    let found = sandbox(&POD.parse().unwrap(), &sandboxes(all));
    let found = found.as_ref().map(|found| found.id.as_str()).map_err(reason);
    assert_eq!(found, expected);
}

#[test]
fn a_pod_of_this_name_in_another_namespace_is_named() {
    let all = sandboxes(&["s1 test/db-0 0 ready", "s2 a/db-0 0 ready", "s3 b/db-0 0 gone"]);
    let error = sandbox(&POD.parse().unwrap(), &all).unwrap_err();
    assert_eq!(error.message(), "there is no pod shop/db-0; there are: a/db-0, test/db-0");
}

#[rstest]
#[case::only(None, &["c1 app 0 running"], Ok("c1"))]
#[case::beside_ended_ones(None, &["c0 init 0 exited", "c1 app 0 running"], Ok("c1"))]
#[case::several(None, &["c1 app 0 running", "c2 log 0 running"], Err("container_not_named"))]
#[case::none(None, &["c0 init 0 exited"], Err("pod_without_container"))]
#[case::named(Some("log"), &["c1 app 0 running", "c2 log 0 running"], Ok("c2"))]
#[case::restarted(Some("app"), &["c1 app 0 exited", "c2 app 1 running"], Ok("c2"))]
#[case::twice(Some("app"), &["c1 app 0 running", "c2 app 1 running"], Err("ambiguous_container"))]
#[case::ended(Some("app"), &["c1 app 0 exited"], Err("pod_container_not_running"))]
#[case::starts(Some("app"), &["c1 app 0 created"], Err("pod_container_not_running"))]
#[case::unknown(Some("web"), &["c1 app 0 running"], Err("pod_container_not_found"))]
#[case::id(Some("c1"), &["c1 app 0 running"], Err("pod_container_not_found"))]
fn the_container_that_runs_is_meant(
    #[case] name: Option<&str>,
    #[case] all: &[&str],
    #[case] expected: Result<&str, &'static str>,
) {
    let found = containers(&POD.parse().unwrap(), name, Wanted::Running, pod_containers(all));
    let found = found.as_ref().map(|found| found[0].id.as_str()).map_err(reason);
    assert_eq!(found, expected);
}

#[test]
fn all_attempts_of_a_container_are_found_the_newest_first() {
    let pod = POD.parse().unwrap();
    let all = ["c1 app 0 exited", "c3 app 2 created", "c2 app 1 running", "c4 log 5 running"];
    let found = containers(&pod, Some("app"), Wanted::Named, pod_containers(&all)).unwrap();
    let ids: Vec<_> = found.iter().map(|one| one.id.as_str()).collect();
    assert_eq!(ids, ["c2", "c3", "c1"]);
    assert_eq!(containers(&pod, None, Wanted::Named, pod_containers(&all)).unwrap(), []);
}

#[test]
fn an_unknown_container_is_answered_with_those_that_there_are() {
    let all = pod_containers(&["c2 log 0 running", "c1 app 0 exited", "c3 app 1 running"]);
    let error = containers(&POD.parse().unwrap(), Some("web"), Wanted::Running, all).unwrap_err();
    assert_eq!(error.message(), "pod shop/db-0 has no container \"web\"; it has: app, log");
}
