//! The patches in `upstream` are the lines of `examples/kata-agent`: removed from a copy of it they
//! leave the stub without the plugin, and applied to that they make the example again, which this
//! workspace compiles and tests.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

/// Where a path of Kata's is in the example.
const PLACES: [(&str, &str); 7] = [
    ("Cargo.toml", "root.toml"),
    ("src/agent/Cargo.toml", "Cargo.toml"),
    ("src/agent/Makefile", "Makefile"),
    ("src/agent/src", "src"),
    ("src/kata-opa/allow-all.rego", "kata-opa/allow-all.rego"),
    ("src/kata-opa/allow-all-except-exec-process.rego", "kata-opa/allow-all.rego"),
    ("src/tools/genpolicy/rules.rego", "genpolicy/rules.rego"),
];

/// Of the example's lines only these name the plugin and are not in a patch: what its tests need,
/// and its default features.
const ELSEWHERE: [&str; 4] = [
    "default = [\"agent-policy\", \"block-volume\"]",
    "#[cfg(all(test, feature = \"block-volume\"))]",
    "#[cfg(all(test, feature = \"agent-policy\", feature = \"block-volume\"))]",
    "//!",
];

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The patches in their order; the cover letter is not among them.
fn patches() -> Vec<PathBuf> {
    let directory = fs::read_dir(here().join("upstream")).unwrap();
    let mut patches: Vec<_> = directory.map(|entry| entry.unwrap().path()).collect();
    patches.retain(|path| path.extension().is_some_and(|extension| extension == "patch"));
    patches.sort();
    assert!(patches.remove(0).ends_with("0000-cover-letter.patch"));
    patches
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    if !from.is_dir() {
        let text = fs::read_to_string(from).unwrap();
        // The patches name the version that is published.
        let version = env!("CARGO_PKG_VERSION");
        let published = format!("agent-plugin = {{ version = \"{version}\", ");
        fs::write(to, text.replace("agent-plugin = { path = \"../..\", ", &published)).unwrap();
        return;
    }
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        copy(&entry.path(), &to.join(entry.file_name()));
    }
}

/// A copy of the example, laid out as Kata's tree.
fn example() -> TempDir {
    let tree = tempfile::tempdir().unwrap();
    for (place, file) in PLACES {
        copy(&here().join("examples/kata-agent").join(file), &tree.path().join(place));
    }
    tree
}

/// Applies a patch without its documentation, which the example does not have.
fn apply(tree: &Path, patch: &Path, how: &[&str]) {
    let mut command = Command::new("git");
    command.args(["apply", "--whitespace=error-all", "--exclude=docs/*"]).args(how).arg(patch);
    // In a directory that belongs to a repository git would apply nothing, and say nothing.
    command.env("GIT_CEILING_DIRECTORIES", tree.parent().unwrap()).current_dir(tree);
    let output = command.output().expect("git");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{} {how:?}:\n{message}", patch.display());
}

/// The files of a tree, by path.
fn files(tree: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut directories = vec![tree.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(tree).unwrap().to_owned(), text));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn the_patches_are_the_lines_of_the_example() {
    let (tree, patches) = (example(), patches());
    assert_eq!(patches.len(), 4);
    let complete = files(tree.path());
    for patch in patches.iter().rev() {
        apply(tree.path(), patch, &["--reverse"]);
    }
    let stub = files(tree.path());
    let is_test = |path: &Path| path.to_string_lossy().ends_with("tests.rs");
    for (path, text) in
        stub.iter().filter(|(path, _)| !is_test(path) && !path.ends_with("no_pause.rs"))
    {
        for line in
            text.lines().filter(|line| !ELSEWHERE.iter().any(|start| line.starts_with(start)))
        {
            let names =
                ["block-volume", "block_volume", "BlockVolume", "agent_plugin", "agent-plugin"];
            let found = names.iter().any(|name| line.contains(name));
            assert!(!found, "{}: {line}\nis in no patch", path.display());
        }
    }
    for patch in &patches {
        apply(tree.path(), patch, &[]);
    }
    assert!(complete == files(tree.path()), "what the patches make differs from the example");
}

#[test]
fn the_messages_have_the_form_that_kata_asks_for() {
    for (number, patch) in (1..).zip(patches()) {
        let text = fs::read_to_string(&patch).unwrap();
        let (message, _) = text.split_once("\n---\n").unwrap();
        let (head, body) = message.split_once("\n\n").unwrap();
        let subject = head.split_once("\nSubject: ").unwrap().1;
        let subject = subject.strip_prefix(&format!("[PATCH {number}/4] ")).unwrap();
        let (subsystem, rest) = subject.split_once(": ").unwrap();
        assert!(!subsystem.contains(' ') && !rest.is_empty(), "{subject}");
        assert!(subject.len() <= 75, "{subject}");
        assert!(body.lines().all(|line| line.len() <= 72), "{subject}:\n{body}");
        assert!(body.lines().count() > 4, "{subject}: no reason");
        let trailer = "\nFixes: #0000\nSigned-off-by: Your Name <you@example.com>";
        assert!(body.ends_with(trailer), "{subject}:\n{body}");
        // Of Kata's own text a hunk has a line before and a line after what it inserts.
        for hunk in text.split("\n@@ ").skip(1) {
            let lines = || hunk.lines().skip(1).take_while(|line| !line.starts_with("diff "));
            let kept = lines().filter(|line| line.starts_with(' ')).count();
            assert!(kept <= 2, "{subject}: {kept} lines of context in\n{hunk}");
            assert!(!lines().any(|line| line.starts_with('-')), "{subject}: removes\n{hunk}");
        }
        let letter = fs::read_to_string(here().join("upstream/0000-cover-letter.patch")).unwrap();
        assert!(letter.contains(&format!("\n  {subject}\n")), "the cover letter lacks {subject}");
    }
}

#[test]
fn the_makefiles_switch_adds_the_feature() {
    let features = |arguments: &[&str]| {
        let directory = here().join("examples/kata-agent");
        let output = Command::new("make")
            .arg("--dry-run")
            .arg("-C")
            .arg(directory)
            .args(arguments)
            .env_remove("BLOCK_VOLUME")
            .output()
            .expect("make");
        assert!(output.status.success(), "{output:?}");
        let line = String::from_utf8(output.stdout).unwrap();
        line.split_once("--features \"").unwrap().1.split_once('"').unwrap().0.trim().to_owned()
    };
    assert_eq!(features(&[]), "seccomp");
    assert_eq!(features(&["BLOCK_VOLUME=yes"]), "block-volume seccomp");
    // The form for an unchanged Makefile.
    assert_eq!(features(&["EXTRA_RUSTFEATURES=block-volume"]), "block-volume seccomp");
}
