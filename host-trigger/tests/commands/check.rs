//! `check` against a real QEMU: checks that pass, and each problem with its exit status and remedy.
//! Nothing is changed.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use crate::common::{
    Host, RunOutput,
    volume::{Image, Loop},
};
use host_trigger::output::{
    envelope::{Envelope, Outcome},
    findings::{CheckReport, Finding, Status},
};
use rstest::rstest;

const MIB: u64 = 1 << 20;

async fn check(host: &Host, more: &[&str]) -> (RunOutput, CheckReport) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_ecr-runtime"));
    command.arg("--run-dir").arg(host.path("")).args(["check", "--output", "json"]).args(more);
    read(crate::common::run(&mut command).await)
}

fn read(ran: RunOutput) -> (RunOutput, CheckReport) {
    let envelope: Envelope<CheckReport> =
        serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:?}"));
    let checked = envelope.body;
    assert_eq!(ran.exit_code, Some(checked.exit_code().into()), "{ran:?}");
    let worst = match checked.checks.iter().map(|finding| finding.status).max().unwrap() {
        Status::Ok => Outcome::Ok,
        Status::Warning => Outcome::Warning,
        Status::Problem => Outcome::Problem,
    };
    assert_eq!((envelope.result, envelope.command.as_str()), (worst, "check"));
    (ran, checked)
}

fn named<'a>(checked: &'a CheckReport, name: &str) -> &'a Finding {
    let found = checked.checks.iter().find(|finding| finding.name == name);
    found.unwrap_or_else(|| panic!("no {name} in {:#?}", checked.checks))
}

fn of_container<'a>(checked: &'a CheckReport, id: &str) -> &'a Finding {
    let found = checked.checks.iter().find(|finding| finding.container.as_deref() == Some(id));
    found.unwrap_or_else(|| panic!("no container {id} in {:#?}", checked.checks))
}

/// Returns the lines of the remedy.
fn remedies(finding: &Finding) -> impl Iterator<Item = &str> {
    finding.remedy.iter().flat_map(|remedy| remedy.lines())
}

const SANDBOX_CHECKS: [&str; 18] = [
    "sandbox",
    "lock",
    "qmp",
    "qemu_version",
    "vm",
    "controller",
    "hotplug_events",
    "addresses",
    "descriptors",
    "volumes",
    "agent",
    "plugin",
    "mounts",
    "scsi_hosts",
    "scan_mode",
    "guest_kernel",
    "container",
    "container",
];

#[tokio::test]
async fn a_check_of_a_sandbox_changes_nothing() {
    let mut host = Host::boot().await;
    // QEMU was started with -S, and a stopped VM is a problem.
    host.execute("cont", serde_json::json!({})).await;
    let (device, image) = (Loop::of(MIB), Image::of(MIB));
    host.plug(device.path(), "/dev/xvda", &[]).await.report();
    host.plug(image.path(), "/dev/xvdb", &[]).await.report();
    let (before, changes) = (host.snapshot().await, host.changes().len());
    let (ran, checked) = check(&host, &["--sandbox", "s"]).await;
    // A free socket and a controller have proved what the configuration is about.
    assert!(checked.checks.iter().all(|one| one.name != "kata_configuration"), "{ran:?}");
    assert_eq!((ran.exit_code, checked.sandbox.as_deref()), (Some(0), Some("s1")), "{ran:?}");
    let names: Vec<_> = checked.checks.iter().map(|finding| finding.name.as_str()).collect();
    assert!(names.ends_with(&SANDBOX_CHECKS), "{names:?}");
    assert_eq!(named(&checked, "volumes").message, "2 attached");
    assert_eq!(named(&checked, "addresses").message, "16318 of 16320 SCSI addresses are free");
    assert_eq!(named(&checked, "controller").message, "scsi0 at 0000:00:01.0");
    let container = of_container(&checked, "c1");
    assert_eq!(container.status, Status::Warning, "{container:?}");
    assert!(
        container.message.contains("CAP_MKNOD")
            && container.remedy.as_ref().unwrap().contains("MKNOD"),
        "{container:?}"
    );
    assert_eq!((host.snapshot().await, host.changes().len()), (before, changes));

    let (_, checked) = check(&host, &["--container", "c2"]).await;
    let containers = checked.checks.iter().filter_map(|finding| finding.container.as_deref());
    assert_eq!(containers.collect::<Vec<_>>(), ["c2"]);
}

#[tokio::test]
async fn a_host_is_checked_without_a_sandbox() {
    let host = Host::boot().await;
    let (ran, checked) = check(&host, &[]).await;
    assert_eq!((ran.exit_code, checked.sandbox.as_deref()), (Some(0), None), "{ran:?}");
    let names: Vec<_> = checked.checks.iter().map(|finding| finding.name.as_str()).collect();
    assert!(
        names.starts_with(&["rights", "sandboxes", "kata_configuration", "kernel", "vsock", "lvm"]),
        "{names:?}"
    );
    assert!(named(&checked, "sandboxes").message.starts_with("1 in "));
    let kata = named(&checked, "kata_configuration");
    assert_eq!(kata.remedy.is_some(), kata.status != Status::Ok, "{kata:?}");

    let empty = tempfile::tempdir().unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_ecr-runtime"));
    command.arg("--run-dir").arg(empty.path()).arg("check");
    let ran = crate::common::run(&mut command).await;
    assert_eq!(ran.exit_code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains("warning  sandboxes "), "{ran:?}");
    assert!(
        ran.stdout.lines().last().unwrap().starts_with("volumes can be plugged; warnings: "),
        "{ran:?}"
    );
}

#[tokio::test]
async fn a_socket_held_by_another_client_is_a_problem_whose_remedy_adds_another_socket() {
    let host = Host::boot().await;
    let deadline = host_trigger::Deadline::after(std::time::Duration::from_secs(10));
    let _held =
        block_volume_qmp::Qmp::connect(host.path("vm/s1/qmp.sock"), deadline).await.unwrap();
    let (ran, checked) = check(&host, &["--sandbox", "s1"]).await;
    assert_eq!(ran.exit_code, Some(13), "{ran:?}");
    let qmp = named(&checked, "qmp");
    assert!(remedies(qmp).any(|line| line.contains("start QEMU by ecr-qemu")), "{qmp:?}");
    // It says what to do on this node.
    let kata = named(&checked, "kata_configuration");
    assert!(kata.status == Status::Warning && kata.remedy.is_some(), "{kata:?}");
    // The guest is checked anyway.
    assert_eq!(named(&checked, "plugin").status, Status::Ok);
}

#[rstest]
#[case::no_controller(&[], &["--sandbox", "s1"], "controller", 10)]
#[case::two_controllers(&["-device", "virtio-scsi-pci,id=a", "-device", "virtio-scsi-pci,id=b"], &["--sandbox", "s1"], "controller", 2)]
#[case::no_sandbox(&["-device", "virtio-scsi-pci,id=scsi0"], &["--sandbox", "s9"], "sandbox", 3)]
#[case::no_container(&["-device", "virtio-scsi-pci,id=scsi0"], &["--sandbox", "s1", "--container", "c9"], "containers", 3)]
#[case::no_agent(&["-device", "virtio-scsi-pci,id=scsi0"], &["--sandbox", "s1", "--agent", "unix:///nonexistent"], "plugin", 14)]
#[tokio::test]
async fn each_problem_has_the_exit_status_with_which_a_hot_plug_would_fail(
    #[case] devices: &[&str],
    #[case] more: &[&str],
    #[case] name: &str,
    #[case] exit_code: u8,
) {
    let mut host = Host::boot_with(devices).await;
    host.execute("cont", serde_json::json!({})).await;
    let before = host.snapshot().await;
    let (ran, checked) = check(&host, more).await;
    let finding = named(&checked, name);
    assert_eq!((finding.status, finding.exit_code), (Status::Problem, exit_code), "{ran:?}");
    assert_eq!(ran.exit_code, Some(exit_code.into()), "{ran:?}");
    assert_eq!(host.snapshot().await, before);
}

#[tokio::test]
async fn a_stopped_vm_an_old_agent_and_a_refusing_guest_are_problems() {
    let host = Host::boot().await;
    let (ran, checked) = check(&host, &["--sandbox", "s1"]).await;
    assert_eq!((ran.exit_code, named(&checked, "vm").exit_code), (Some(7), 7), "{ran:?}");
    *host.agent.api_level.lock().unwrap() = 2;
    assert_eq!(named(&check(&host, &["--sandbox", "s1"]).await.1, "plugin").exit_code, 12);
    *host.agent.api_level.lock().unwrap() = 1;
    *host.agent.probe_failure.lock().unwrap() =
        Some(block_volume_api::block_volume::Reason::REASON_DENIED);
    let (_, checked) = check(&host, &["--sandbox", "s1"]).await;
    let denied = named(&checked, "plugin");
    assert_eq!(denied.exit_code, 9);
    assert!(remedies(denied).any(|line| line == "default AttachBlockVolumeRequest := false"));
    let socket = host.path("sbs/s1/shim-monitor.sock").display().to_string();
    assert!(
        remedies(denied).any(|line| line.starts_with("curl ") && line.contains(&socket)),
        "{denied:?}"
    );
    host.agent.stop().await;
    host.agent.start_without_plugin().await;
    assert_eq!(named(&check(&host, &["--sandbox", "s1"]).await.1, "plugin").exit_code, 10);
}

#[tokio::test]
async fn each_missing_capability_of_the_guests_kernel_is_a_finding_with_the_option() {
    let mut host = Host::boot().await;
    host.execute("cont", serde_json::json!({})).await;
    let agent = host.agent.clone();
    let set = |missing| *agent.missing_capabilities.lock().unwrap() = missing;
    let kernel = |checked: &CheckReport| -> Vec<Finding> {
        checked.checks.iter().filter(|finding| finding.name == "guest_kernel").cloned().collect()
    };
    let (_, checked) = check(&host, &["--sandbox", "s1"]).await;
    let [finding] = &kernel(&checked)[..] else { panic!("{checked:#?}") };
    assert_eq!(finding.message, "6.1.0-test: has all that volumes need");
    assert_eq!((finding.status, &finding.capability), (Status::Ok, &None));

    set(Some(vec!["user_namespaces", "kcmp", "telepathy"]));
    let (ran, checked) = check(&host, &["--sandbox", "s1"]).await;
    assert_eq!(ran.exit_code, Some(0), "{ran:?}");
    let found = kernel(&checked);
    let [namespaces, kcmp, unknown] = &found[..] else { panic!("{found:#?}") };
    assert_eq!(
        (namespaces.status, namespaces.capability.as_deref()),
        (Status::Warning, Some("user_namespaces"))
    );
    assert!(namespaces.message.contains("(CONFIG_USER_NS, and "), "{namespaces:?}");
    assert!(remedies(namespaces).any(|line| line.contains("give the guest CONFIG_USER_NS")));
    assert_eq!((kcmp.status, unknown.status), (Status::Ok, Status::Warning));
    assert!(kcmp.message.contains("(CONFIG_KCMP)") && unknown.message.contains("no telepathy"));
    host.plug(Image::of(MIB).path(), "/dev/xvda", &[]).await.report();

    set(Some(vec!["openat2"]));
    let before = host.snapshot().await;
    let (ran, checked) = check(&host, &["--sandbox", "s1"]).await;
    let finding = &kernel(&checked)[0];
    assert_eq!((finding.status, ran.exit_code), (Status::Problem, Some(10)), "{ran:?}");
    // The same error, before the VM gets a disk.
    let changes = host.changes().len();
    let refused = host.plug(Image::of(MIB).path(), "/dev/xvdb", &[]).await;
    assert_eq!(refused.exit_code, Some(10), "{refused:?}");
    assert_eq!(host.snapshot().await, before);
    assert!(host.changes()[changes..].iter().all(|change| change["execute"] != "device_add"));

    set(None);
    let (ran, checked) = check(&host, &["--sandbox", "s1"]).await;
    assert_eq!((ran.exit_code, kernel(&checked)[0].status), (Some(0), Status::Warning), "{ran:?}");
    assert!(kernel(&checked)[0].message.starts_with("not known"), "{ran:?}");
}

#[tokio::test]
async fn few_descriptors_and_a_run_that_holds_the_lock_are_reported() {
    let mut host = Host::boot().await;
    host.execute("cont", serde_json::json!({})).await;
    let (_, checked) = check(&host, &["--sandbox", "s1"]).await;
    assert!(
        named(&checked, "descriptors")
            .message
            .starts_with(&format!("process {} has ", host.qemu.id()))
    );
    let limit = Command::new("prlimit")
        .args(["--nofile=64:64", "--pid", &host.qemu.id().to_string()])
        .status();
    assert!(limit.unwrap().success());
    let directory = fs::File::open(host.path("vm/s1")).unwrap();
    directory.lock().unwrap();
    let unlock = async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        directory.unlock().unwrap();
    };
    let ((ran, checked), ()) = tokio::join!(check(&host, &["--sandbox", "s1"]), unlock);
    assert_eq!(ran.exit_code, Some(0), "{ran:?}");
    let descriptors = named(&checked, "descriptors");
    assert_eq!(descriptors.status, Status::Warning, "{descriptors:?}");
    assert!(descriptors.message.contains(" of 64 "), "{descriptors:?}");
    let lock = named(&checked, "lock");
    assert!(lock.message.contains(&format!("process {} ", std::process::id())), "{lock:?}");

    directory.lock().unwrap();
    let (ran, checked) = check(&host, &["--sandbox", "s1", "--timeout", "500ms"]).await;
    assert_eq!((ran.exit_code, named(&checked, "lock").exit_code), (Some(7), 7), "{ran:?}");
}

#[cfg(feature = "fault")]
#[tokio::test]
async fn leftovers_of_a_killed_run_are_reported() {
    let mut host = Host::boot().await;
    host.execute("cont", serde_json::json!({})).await;
    let volume = Loop::of(MIB);
    let mut command = host.command(&[(volume.path(), "/dev/xvda")], &[]);
    crate::common::run(command.env("ECR_RUNTIME_FAULT", "after-device-add=kill")).await;
    let before = host.snapshot().await;
    let (ran, checked) = check(&host, &["--sandbox", "s1"]).await;
    let volumes = named(&checked, "volumes");
    assert_eq!((ran.exit_code, volumes.status), (Some(0), Status::Warning), "{ran:?}");
    assert!(
        volumes.message.contains("1 incomplete")
            && volumes.remedy.as_ref().unwrap().ends_with("repair"),
        "{volumes:?}"
    );
    assert_eq!(host.snapshot().await, before);
}

#[tokio::test]
async fn a_user_without_permission_gets_a_problem_and_its_remedy() {
    let host = Host::boot().await;
    fs::set_permissions(host.path(""), fs::Permissions::from_mode(0o700)).unwrap();
    let binary = crate::common::public_copy();
    let mut command = tokio::process::Command::new(binary.path().join("ecr-runtime"));
    command.arg("--run-dir").arg(host.path("")).args([
        "check",
        "--output",
        "json",
        "--sandbox",
        "s1",
    ]);
    let (ran, checked) = read(crate::common::run(command.uid(65534).gid(65534)).await);
    assert_eq!(ran.exit_code, Some(11), "{ran:?}");
    let rights = named(&checked, "rights");
    assert!(
        rights.message.contains("65534") && rights.remedy.as_deref() == Some("run it as root"),
        "{rights:?}"
    );
    assert_eq!(named(&checked, "sandbox").exit_code, 11);
}
