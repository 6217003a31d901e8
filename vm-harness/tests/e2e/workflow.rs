//! The public workflow runs the same commands as developers: each recipe that it calls is in the
//! justfile. Its permissions are minimal.

use std::{fs, path::Path};

use yaml_rust2::{Yaml, YamlLoader};

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn workflow() -> Yaml {
    YamlLoader::load_from_str(&read(".github/workflows/ci.yml"))
        .expect("the workflow is YAML")
        .remove(0)
}

/// All steps of all jobs.
fn steps(workflow: &Yaml) -> Vec<&Yaml> {
    let jobs = workflow["jobs"].as_hash().expect("it has jobs").values();
    jobs.flat_map(|job| job["steps"].as_vec().expect("a job has steps")).collect()
}

#[test]
fn each_recipe_that_the_workflow_calls_is_in_the_justfile() {
    let justfile = read("justfile");
    let recipes: Vec<&str> = justfile
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        .filter_map(|line| line.split_once(':')?.0.split_whitespace().next())
        .collect();
    let workflow = workflow();
    let commands: Vec<&str> =
        steps(&workflow).iter().filter_map(|step| step["run"].as_str()).collect();
    let called: Vec<&str> = commands
        .iter()
        .flat_map(|run| run.lines())
        .filter_map(|line| line.strip_prefix("just ")?.split_whitespace().next())
        .collect();
    for name in &called {
        assert!(recipes.contains(name), "the justfile has no {name}: {recipes:?}");
    }
    for name in ["setup", "test", "demo", "node"] {
        assert!(called.contains(&name), "nothing runs `just {name}`: {called:?}");
    }
}

#[test]
fn node_runs_with_a_release_of_kata() {
    let workflow = workflow();
    let runs = steps(&workflow).into_iter().filter_map(|step| step["run"].as_str());
    let nodes: Vec<&str> =
        runs.flat_map(str::lines).filter(|line| line.starts_with("just node")).collect();
    assert_eq!(nodes.len(), 2, "one with the harness's sandboxes, one with Kata's: {nodes:?}");
    assert!(nodes[1].contains("--kata target/kata --stock-agent"), "{nodes:?}");
}

#[test]
fn workflow_may_only_read_the_source() {
    let workflow = workflow();
    let permissions = workflow["permissions"].as_hash().expect("it lists its permissions");
    let granted: Vec<_> =
        permissions.iter().map(|(what, how)| (what.as_str(), how.as_str())).collect();
    assert_eq!(granted, [(Some("contents"), Some("read"))]);
    let jobs = workflow["jobs"].as_hash().unwrap();
    assert!(
        jobs.values().all(|job| job["permissions"].is_badvalue()),
        "no job may have more permissions"
    );
    for step in steps(&workflow) {
        let Some(action) = step["uses"].as_str() else { continue };
        let version = action.split_once('@').map_or("", |(_, version)| version);
        assert!(
            version.strip_prefix('v').is_some_and(|number| number.parse::<u8>().is_ok()),
            "{action}"
        );
        if action.starts_with("actions/checkout") {
            assert_eq!(
                step["with"]["persist-credentials"].as_bool(),
                Some(false),
                "no token may be left in the tree"
            );
        }
    }
}

#[test]
fn artifacts_of_a_failure_are_kept() {
    let workflow = workflow();
    let artifacts = "target/artifacts";
    let runs: Vec<&str> =
        steps(&workflow).into_iter().filter_map(|step| step["run"].as_str()).collect();
    let exports_path = format!("export VM_HARNESS_ARTIFACTS=\"$PWD/{artifacts}\"\njust test");
    assert!(runs.iter().any(|run| run.contains(&exports_path)), "{runs:?}");
    let kept: Vec<_> = steps(&workflow)
        .into_iter()
        .filter(|step| {
            step["uses"].as_str().is_some_and(|uses| uses.starts_with("actions/upload-artifact"))
        })
        // What a job makes is uploaded without a condition.
        .filter_map(|step| Some((step["if"].as_str()?, step["with"]["path"].as_str()?)))
        .collect();
    assert_eq!(kept, [("always()", "target/nextest/*/junit.xml"), ("failure()", artifacts)]);
    assert!(
        read(".config/nextest.toml").contains("path = \"junit.xml\""),
        "nextest writes the report"
    );
}
