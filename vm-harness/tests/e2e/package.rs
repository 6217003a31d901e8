//! The Debian package on a node where a volume is plugged: upgraded, removed and installed again.
//! It goes into this machine's own Debian, in a mount namespace of the test, on file systems that
//! end with it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use vm_harness::{EcrRuntime, Environment, Sandbox, Volume};

use super::{MIB, host_failures::claim_is_free, hot_unplug::verb, sandbox};

/// What the package and its maintainer's scripts write to.
const WRITTEN: [&str; 3] = ["/usr", "/etc", "/var/lib/dpkg"];
const SCRATCH: &str = "/mnt";
const PROGRAM: &str = "/usr/bin/ecr-runtime";
const CONFIGURATION: &str = "/etc/kata-containers/configuration.toml";
const DROP_IN: &str = "/etc/kata-containers/config.d/zz-ecr-runtime.toml";

/// Gives this test's thread, and what it starts, its own copy of what a package changes, and the
/// sandbox's run directory in the usual place.
fn own_debian(run_dir: &Path) {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    for path in [SCRATCH, "/run"] {
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).unwrap();
    }
    for (index, path) in WRITTEN.iter().enumerate() {
        let [upper, work] = ["upper", "work"].map(|name| format!("{SCRATCH}/{name}{index}"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        let options = format!("lowerdir={path},upperdir={upper},workdir={work}");
        mount(Some("overlay"), *path, Some("overlay"), MsFlags::empty(), Some(&*options)).unwrap();
    }
    fs::create_dir("/run/vc").unwrap();
    mount(Some(run_dir), "/run/vc", none, MsFlags::MS_BIND, none).unwrap();
}

fn run(program: impl AsRef<Path>, arguments: &[&str]) -> Output {
    let mut command = Command::new(program.as_ref());
    command.args(arguments).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// Runs a program that must succeed. Returns its standard error.
#[track_caller]
fn succeed(program: impl AsRef<Path>, arguments: &[&str]) -> String {
    let ran = run(program, arguments);
    assert!(ran.status.success(), "{ran:?}");
    String::from_utf8(ran.stderr).unwrap()
}

/// Makes the package of this build in `out`.
fn package(out: &Path) -> PathBuf {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let ran = Command::new(tree.join("ci/package"))
        .arg("--from")
        .arg(Environment::from_variables().target.join("release"))
        .arg("--out")
        .arg(out)
        // The tree need not be a clone.
        .env("SOURCE_DATE_EPOCH", "1700000000")
        // Compressed well, it takes ten times as long.
        .env("DPKG_DEB_COMPRESSOR_LEVEL", "0")
        .output()
        .unwrap();
    assert!(ran.status.success(), "{ran:?}");
    fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path()).next().unwrap()
}

/// The same package as a later version.
fn later(package: &Path) -> PathBuf {
    let (tree, later) = (Path::new(SCRATCH).join("later"), package.with_file_name("later.deb"));
    let [package, tree_name, later_name] = [package, &tree, &later].map(|p| p.to_str().unwrap());
    succeed("dpkg-deb", &["--raw-extract", package, tree_name]);
    let control = tree.join("DEBIAN/control");
    let text = fs::read_to_string(&control).unwrap();
    let lines = text.lines().map(|line| match line.starts_with("Version: ") {
        true => format!("{line}+later\n"),
        false => format!("{line}\n"),
    });
    fs::write(&control, lines.collect::<String>()).unwrap();
    succeed("dpkg-deb", &["--root-owner-group", "-Zgzip", "-z1", "--build", tree_name, later_name]);
    later
}

/// Triggers would work on what the machine has besides.
fn dpkg(arguments: &[&str]) -> Output {
    run("dpkg", &[&["--no-triggers", "--log=/dev/null"], arguments].concat())
}

#[track_caller]
fn install(package: &Path) {
    let ran = dpkg(&["--install", package.to_str().unwrap()]);
    assert!(ran.status.success(), "{ran:?}");
}

fn installed_version() -> String {
    let ran =
        run("dpkg-query", &["--show", "--showformat", "${db:Status-Status} ${Version}", NAME]);
    String::from_utf8(ran.stdout).unwrap()
}

const NAME: &str = "ecr-runtime";

/// The program of the package.
fn installed(sandbox: &Sandbox) -> EcrRuntime {
    sandbox.ecr_runtime().program(Path::new(PROGRAM))
}

#[rstest::rstest]
#[tokio::test]
async fn volume_stays_plugged_while_the_package_is_upgraded_and_removed(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    // Cargo may be below what is replaced.
    let packages = tempfile::tempdir().unwrap();
    let package = package(packages.path());
    own_debian(sandbox.run_dir());
    install(&package);
    fs::create_dir("/etc/kata-containers").unwrap();
    fs::write(CONFIGURATION, "[hypervisor.qemu]\npath = \"/usr/bin/qemu\"\n").unwrap();
    succeed(PROGRAM, &["node", "enable"]);
    let drop_in = fs::read(DROP_IN).unwrap();
    let plug =
        installed(&sandbox).hot_plug(sandbox.id(), container.id(), &[(&volume, "/dev/xvda")]);
    let plugged = plug.run().await.succeeded(sandbox.guest()).remove(0);

    let later = later(&package);
    install(&later);
    assert!(installed_version().ends_with("+later"), "{}", installed_version());
    assert_eq!(fs::read(DROP_IN).unwrap(), drop_in, "an upgrade leaves the node as it is");
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
    let listed = verb(installed(&sandbox), &sandbox, "list", &[]).run().await;
    assert_eq!(listed.succeeded(sandbox.guest()).remove(0).id(), plugged.id());

    // No sandbox would start any more.
    let refused = dpkg(&["--remove", NAME]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains(DROP_IN), "{said}");
    assert!(installed_version().starts_with("installed "), "{}", installed_version());

    succeed(PROGRAM, &["node", "disable"]);
    let removed = dpkg(&["--remove", NAME]);
    let said = String::from_utf8_lossy(&removed.stderr);
    assert!(removed.status.success() && said.contains(sandbox.id()), "{said}");
    assert!(!Path::new(PROGRAM).exists());
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
    assert!(!claim_is_free(&volume), "QEMU still has it");

    install(&later);
    verb(installed(&sandbox), &sandbox, "hot-unplug", &["--volume", plugged.id()])
        .run()
        .await
        .succeeded(sandbox.guest());
    assert!(claim_is_free(&volume));
    let purged = dpkg(&["--purge", NAME]);
    let said = String::from_utf8_lossy(&purged.stderr);
    assert!(purged.status.success() && !said.contains("ecr-runtime: "), "{said}");
    assert_eq!(installed_version(), "", "nothing is left of it");
}
