//! Runtime classes as containerd and CRI-O define them, in trees of files.

use rstest::rstest;

use super::*;
use crate::kata::test_tree::tree;

const QEMU: &str = "opt/kata/share/defaults/kata-containers/runtimes/qemu/configuration-qemu.toml";
const V2: &str = r#"version = 2
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata-qemu]
runtime_type = "io.containerd.kata-qemu.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata-qemu.options]
ConfigPath = "/opt/kata/share/defaults/kata-containers/runtimes/qemu/configuration-qemu.toml"
"#;
const CRIO_QEMU: &str = r#"
[crio.runtime.runtimes.kata-qemu]
runtime_path = "/opt/kata/bin/containerd-shim-kata-v2"
runtime_type = "vm"
runtime_config_path = "/opt/kata/share/defaults/kata-containers/runtimes/qemu/configuration-qemu.toml"
[crio.runtime.runtimes.crun]
runtime_type = "oci"
"#;

#[rstest]
#[case::version_2(&[("etc/containerd/config.toml", V2)])]
#[case::k3s(&[("var/lib/rancher/k3s/agent/etc/containerd/config.toml", V2)])]
#[case::import(&[("etc/containerd/config.toml", "imports = [\"/opt/k/*.toml\"]"), ("opt/k/kata.toml", V2)])]
#[case::relative_import(&[("etc/containerd/config.toml", "imports = [\"more.toml\"]"), ("etc/containerd/more.toml", V2)])]
#[case::conf_d(&[("etc/containerd/conf.d/kata.toml", V2)])]
#[case::crio(&[("etc/crio/crio.conf", CRIO_QEMU)])]
#[case::crio_drop_in(&[("etc/crio/crio.conf.d/99-kata-deploy", CRIO_QEMU)])]
fn a_class_and_its_configuration_are_found(#[case] files: &[(&str, &str)]) {
    let root = tree(&[files, &[(QEMU, "")]].concat());
    let found = all(root.path()).unwrap();
    let [class] = &found[..] else { panic!("{found:?}") };
    assert_eq!((class.name.as_str(), class.runtime), ("kata-qemu", Runtime::Go));
    let file = fs::canonicalize(root.path().join(QEMU)).unwrap();
    assert_eq!(class.configuration.as_ref(), Some(&file));
    assert!(class.defined.is_some());
}

#[rstest]
fn the_plugin_of_each_version_is_read(
    #[values("cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime")] plugin: &str,
) {
    let text = V2.replace("io.containerd.grpc.v1.cri", plugin);
    let root = tree(&[("etc/containerd/config.toml", &text), (QEMU, "")]);
    assert_eq!(all(root.path()).unwrap().len(), 1);
}

#[test]
fn an_import_wins_over_the_file_that_imports_it() {
    let other = V2.replace("configuration-qemu.toml", "other.toml");
    let other_file = QEMU.replace("configuration-qemu.toml", "other.toml");
    let main = format!("imports = [\"/etc/containerd/conf.d/*.toml\"]\n{V2}");
    let root = tree(&[
        ("etc/containerd/config.toml", &main),
        ("etc/containerd/conf.d/kata.toml", &other),
        (&other_file, ""),
    ]);
    let found = all(root.path()).unwrap();
    assert!(found[0].configuration.as_ref().unwrap().ends_with(&other_file), "{found:?}");
}

#[test]
fn imports_that_import_each_other_come_to_an_end() {
    let root = tree(&[
        ("etc/containerd/config.toml", "imports = [\"a.toml\"]"),
        ("etc/containerd/a.toml", "imports = [\"b.toml\"]"),
        ("etc/containerd/b.toml", "imports = [\"a.toml\", \"config.toml\"]"),
    ]);
    assert_eq!(all(root.path()).unwrap(), []);
}

#[rstest]
#[case::etc_first(&["etc/kata-containers", "opt/kata/share/defaults/kata-containers"], Runtime::Go, "etc")]
#[case::usr(&["usr/share/defaults/kata-containers"], Runtime::Go, "usr")]
#[case::opt(&["opt/kata/share/defaults/kata-containers"], Runtime::Go, "opt")]
#[case::rust(&["etc/kata-containers", "opt/kata/share/defaults/kata-containers/runtime-rs"], Runtime::Rust, "opt")]
fn a_class_without_a_configuration_uses_the_first_of_the_usual_places(
    #[case] directories: &[&str],
    #[case] runtime: Runtime,
    #[case] expected: &str,
) {
    let shim = if runtime == Runtime::Rust { "opt/kata/runtime-rs/bin" } else { "opt/kata/bin" };
    let text = format!(
        "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata]\n\
         runtime_type = \"io.containerd.kata.v2\"\nruntime_path = \"/{shim}/containerd-shim-kata-v2\"\n"
    );
    let files: Vec<_> =
        directories.iter().map(|path| format!("{path}/configuration.toml")).collect();
    let mut all_files: Vec<_> = files.iter().map(|file| (file.as_str(), "")).collect();
    all_files.push(("etc/containerd/config.toml", &text));
    let root = tree(&all_files);
    let found = all(root.path()).unwrap();
    let real = fs::canonicalize(root.path().join(expected)).unwrap();
    assert_eq!(found[0].runtime, runtime);
    assert!(found[0].configuration.as_ref().unwrap().starts_with(real), "{found:?}");
}

#[test]
fn the_shim_that_a_type_leads_to_shows_the_runtime() {
    let text = V2.lines().filter(|line| !line.starts_with("ConfigPath")).collect::<Vec<_>>();
    let root = tree(&[
        ("etc/containerd/config.toml", &text.join("\n")),
        ("opt/kata/runtime-rs/bin/containerd-shim-kata-v2", ""),
        ("usr/local/bin/x", ""),
    ]);
    let link = root.path().join("usr/local/bin/containerd-shim-kata-qemu-v2");
    std::os::unix::fs::symlink("../../../opt/kata/runtime-rs/bin/containerd-shim-kata-v2", link)
        .unwrap();
    let found = all(root.path()).unwrap();
    assert_eq!((found[0].runtime, &found[0].configuration), (Runtime::Rust, &None));
}

const SCRIPT: &str = "usr/local/bin/containerd-shim-kata-qemu-v2";
const SHIM: &str = "/opt/kata/bin/containerd-shim-kata-v2 \"$@\"\n";

#[rstest]
#[case::before_the_shim("KATA_CONF_FILE=/etc/k/a.toml", SHIM, Some("etc/k/a.toml"), Runtime::Go)]
#[case::exported(
    "export KATA_CONF_FILE=\"/etc/k/a.toml\"\n",
    SHIM,
    Some("etc/k/a.toml"),
    Runtime::Go
)]
#[case::rust(
    "KATA_CONF_FILE=/etc/k/a.toml",
    "/opt/kata/runtime-rs/bin/containerd-shim-kata-v2",
    Some("etc/k/a.toml"),
    Runtime::Rust
)]
#[case::comment("# KATA_CONF_FILE=/etc/k/a.toml\n", SHIM, None, Runtime::Go)]
#[case::computed("KATA_CONF_FILE=/etc/$X/a.toml", SHIM, None, Runtime::Go)]
#[case::relative("KATA_CONF_FILE=a.toml", SHIM, None, Runtime::Go)]
#[case::nothing("", SHIM, None, Runtime::Go)]
fn a_shim_that_is_a_script_may_name_the_configuration(
    #[case] variable: &str,
    #[case] shim: &str,
    #[case] expected: Option<&str>,
    #[case] runtime: Runtime,
) {
    let lines = V2.lines().filter(|line| !line.starts_with("ConfigPath")).collect::<Vec<_>>();
    let script = format!("#!/bin/sh\n{variable} {shim}");
    let root = tree(&[
        ("etc/containerd/config.toml", &lines.join("\n")),
        ("etc/k/a.toml", ""),
        ("etc/kata-containers/configuration.toml", ""),
        (SCRIPT, &script),
    ]);
    let found = all(root.path()).unwrap();
    let [class] = &found[..] else { panic!("{found:?}") };
    let named = expected.map(|file| root.path().join(file));
    assert_eq!((&class.named, class.runtime), (&named, runtime));
    // What is not known is said.
    let note = class.note();
    assert_eq!(note.is_some_and(|note| note.contains(SCRIPT)), expected.is_none());
}

#[test]
fn a_class_that_names_a_configuration_leaves_nothing_unknown() {
    let root = tree(&[("etc/containerd/config.toml", V2), (QEMU, "")]);
    assert_eq!(all(root.path()).unwrap()[0].note(), None);
    let without = V2.lines().filter(|line| !line.starts_with("ConfigPath")).collect::<Vec<_>>();
    let root = tree(&[("etc/containerd/config.toml", &without.join("\n"))]);
    assert!(all(root.path()).unwrap()[0].note().unwrap().contains("KATA_CONF_FILE"));
}

#[test]
fn without_a_class_the_default_configurations_are_found() {
    let root = tree(&[
        ("etc/kata-containers/configuration.toml", ""),
        ("etc/kata-containers/runtime-rs/configuration.toml", ""),
    ]);
    let found = all(root.path()).unwrap();
    let found: Vec<_> = found.iter().map(|class| (class.name.as_str(), class.runtime)).collect();
    assert_eq!(found, [("", Runtime::Go), ("", Runtime::Rust)]);
}

#[test]
fn a_file_that_is_not_valid_is_an_error() {
    let root = tree(&[("etc/containerd/config.toml", "version = ")]);
    let error = all(root.path()).unwrap_err();
    assert!(error.message().contains("config.toml"), "{error}");
}

#[rstest]
#[case("*.toml", "a.toml", true)]
#[case("*.toml", "a.toml.bak", false)]
#[case("a*b*c", "a-b-b-c", true)]
#[case("a*b*c", "a-c", false)]
fn a_star_stands_for_any_text(#[case] pattern: &str, #[case] name: &str, #[case] expected: bool) {
    assert_eq!(matches(pattern, name), expected);
}
