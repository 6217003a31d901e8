//! From a Debian node to one with the package, as docs/operations.md says.

use std::{fs, path::Path};

use super::{
    super::image::{PACKAGE, PROGRAMS},
    program::{ecr_runtime_succeeds, run},
    runner::{Failed, Runner},
};

/// What `node enable` writes: which QEMU the wrapper becomes.
const RECORD: &str = "/etc/ecr-runtime/ecr-qemu.path";
/// Its drop-in beside each configuration.
const DROP_IN: &str = "config.d/zz-ecr-runtime.toml";

/// The scenario of the package.
pub(super) async fn install(runner: &mut Runner) -> Result<(), Failed> {
    let install = async {
        let package = format!("{}/{PACKAGE}", PROGRAMS.1);
        run(&["apt-get", "-qq", "--yes", "install", &package]).await;
        run(&["ecr-runtime", "--version"]).await;
    };
    runner.scenario("the package is installed", install).await
}

/// Enables the wrapper, which becomes `qemu`, for all runtime classes: their configurations are in
/// these directories.
pub(super) async fn enable(qemu: &str, directories: &[&str]) {
    let enabled = ecr_runtime_succeeds(&["node", "enable"]).await;
    assert_eq!(enabled["result"], "enabled", "{enabled}");
    assert_eq!(fs::read_to_string(RECORD).unwrap_or_default().trim(), qemu);
    for directory in directories {
        let drop_in = Path::new(directory).join(DROP_IN);
        let text = fs::read_to_string(&drop_in).unwrap_or_default();
        assert!(text.contains("/usr/bin/ecr-qemu"), "{}: {text:?}", drop_in.display());
    }
}

/// Writes a file of the node's configuration.
pub(super) fn write(path: &str, text: &str) {
    let parent = Path::new(path).parent().expect("a file is in a directory");
    fs::create_dir_all(parent).unwrap_or_else(|error| panic!("{}: {error}", parent.display()));
    fs::write(path, text).unwrap_or_else(|error| panic!("{path}: {error}"));
}
