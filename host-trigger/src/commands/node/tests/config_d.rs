//! Drop-ins of others beside ours.

use super::*;

#[test]
fn a_link_as_drop_in_is_refused_for_the_rust_runtime_alone() {
    let node = both();
    for class in [GO, RUST] {
        node.write("etc/elsewhere.toml", "[agent.kata]\n");
        let link = node.beside(class, "config.d/10-link.toml");
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(node.path("etc/elsewhere.toml"), link).unwrap();
    }
    assert_eq!(node.enable(&["kata-qemu"]).result, Outcome::Enabled);
    let refused = node.enable(&["kata-rust"]);
    assert!(error(&refused).message.contains("10-link.toml\" cannot be used"), "{refused:?}");
}

#[test]
fn a_drop_in_that_a_later_one_overrides_is_not_called_enabled() {
    let node = both();
    assert_eq!(node.enable(&["kata-qemu"]).result, Outcome::Enabled);
    fs::write(node.beside(GO, "config.d/zzz.toml"), QEMU_2).unwrap();
    let row = node.status().into_iter().find(|row| row.name == "kata-qemu").unwrap();
    assert_eq!((row.state, row.wrapper.as_deref()), (ClassState::Refused, None));
    assert!(row.why.unwrap().contains("config.d/zzz.toml"));
    // It can be disabled all the same.
    assert_eq!(node.disable(&["kata-qemu"]).result, Outcome::Disabled);
    assert!(!node.beside(GO, "config.d/zz-ecr-runtime.toml").exists());
}
