//! The report of `node` as text and as JSON.

use super::*;

fn report() -> NodeReport {
    NodeReport {
        runtime_classes: vec![
            ReportedClass {
                name: "kata-qemu".into(),
                runtime: ReportedRuntime::Go,
                configuration: Some("/k/configuration-qemu.toml".into()),
                hypervisor: "qemu".into(),
                path: Some("/usr/bin/qemu".into()),
                wrapper: Some("/usr/bin/ecr-qemu".into()),
                state: ClassState::Enabled,
                why: None,
            },
            ReportedClass {
                name: "kata-clh".into(),
                runtime: ReportedRuntime::Rust,
                configuration: None,
                hypervisor: String::new(),
                path: None,
                wrapper: None,
                state: ClassState::NoConfiguration,
                why: Some("gone\u{1b}".into()),
            },
        ],
        files: vec![FileChange { path: "/k/config.d".into(), change: Change::Written }],
        commands: Vec::new(),
    }
}

#[test]
fn the_text_shows_classes_reasons_and_files() {
    let envelope = Envelope::new("node enable", Outcome::Enabled, report());
    let expected = "CLASS      RUNTIME  HYPERVISOR  STATE             PATH           CONFIGURATION
kata-qemu  go       qemu        enabled           /usr/bin/qemu  /k/configuration-qemu.toml
kata-clh   rust     -           no configuration  -              -
kata-clh: gone\\u{1b}
written: /k/config.d
new sandboxes have a second QMP socket; running ones stay as they are";
    assert_eq!(human(&envelope), expected);
    let text = human(&envelope.with_dry_run(true));
    assert!(text.ends_with("would be written: /k/config.d"), "{text}");
}

#[test]
fn the_json_form_is_stable() {
    let expected = concat!(
        r#"{"runtime_classes":[{"name":"kata-qemu","runtime":"go","#,
        r#""configuration":"/k/configuration-qemu.toml","hypervisor":"qemu","#,
        r#""path":"/usr/bin/qemu","wrapper":"/usr/bin/ecr-qemu","state":"enabled"},"#,
        r#"{"name":"kata-clh","runtime":"rust","hypervisor":"","state":"no_configuration","#,
        r#""why":"gone\u001b"}],"files":[{"path":"/k/config.d","change":"written"}]}"#
    );
    assert_eq!(serde_json::to_string(&report()).unwrap(), expected);
    assert_eq!(serde_json::from_str::<NodeReport>(expected).unwrap(), report());
}
