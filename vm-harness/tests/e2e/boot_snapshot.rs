//! Guests that are restored from the saved state of another guest.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::symlink,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use block_volume_qmp::Deadline;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::net::UnixStream;
use vm_harness::{Accelerator, Environment, Error, Machine, Origin, Sandbox, Volume};

use super::MIB;

/// The usual environment with a separate cache.
fn environment(cache: &tempfile::TempDir) -> Environment {
    let mut environment = Environment::from_variables();
    symlink(environment.cache.join("bin"), cache.path().join("bin")).unwrap();
    environment.cache = cache.path().to_owned();
    environment.restore = true;
    environment
}

async fn boot(environment: &Environment) -> Sandbox {
    let sandbox = Sandbox::boot_in(environment, "default", &Machine::default()).await;
    sandbox.unwrap_or_else(|error| panic!("no sandbox: {}", error.chain()))
}

fn files(cache: &tempfile::TempDir, suffix: &str) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(cache.path().join("boots")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|found| found == suffix)).collect()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Waits until the guest has `count` connections, with the observer's own.
async fn wait_for_connections(sandbox: &Sandbox, count: usize) {
    // Each has a reference to the module.
    let references = "/sys/module/vmw_vsock_virtio_transport/refcnt";
    let script = format!("until [ $(cat {references}) = {count} ]; do sleep 0.1; done");
    let (awaited, limit) = (format!("{count} connections"), Duration::from_secs(10));
    sandbox.guest().wait_for(&awaited, limit, sandbox.observer().shell(&script)).await.unwrap();
}

#[tokio::test]
async fn restored_guests_have_the_right_time_and_their_own_random_numbers_and_a_broken_file_is_not_used()
 {
    if Accelerator::choose().unwrap().accelerator != Accelerator::Tcg {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let environment = environment(&cache);
    let mut seen = HashSet::new();
    for round in 0..2 {
        let sandbox = boot(&environment).await;
        assert_eq!(*sandbox.guest().origin(), Origin::Restored, "round {round}");
        // The agent's and the observer's, none of the guest that was saved.
        wait_for_connections(&sandbox, 2).await;
        let before = now();
        let date: u64 = sandbox.observer().shell("date +%s").await.trim().parse().unwrap();
        assert!(
            (before..=now()).contains(&date),
            "the guest's clock is {} s behind",
            now().abs_diff(date)
        );
        let random = "head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/boot_id";
        assert!(
            seen.insert(sandbox.observer().shell(random).await),
            "two guests have the same random numbers"
        );
        // The restored guest works like any other.
        let container = sandbox.start_container().await;
        let volume = Volume::image(MIB);
        sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
        assert_eq!(container.read("/dev/xvda", 0..4096).await, volume.bytes(0..4096));
    }
    let [file] = files(&cache, "state").try_into().expect("one file for both");
    assert_eq!(files(&cache, "part"), Vec::<PathBuf>::new());

    let half = fs::metadata(&file).unwrap().len() / 2;
    fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(half).unwrap();
    let sandbox = boot(&environment).await;
    let origin = sandbox.guest().origin().to_string();
    assert!(origin.starts_with("booted (restoring fails: "), "{origin}");
    assert_eq!(
        files(&cache, "state"),
        Vec::<PathBuf>::new(),
        "the broken file is not restored again"
    );
    let [note] = files(&cache, "given-up").try_into().expect("one note");
    assert!(fs::read_to_string(note).unwrap().contains("restoring fails"));
}

#[tokio::test]
async fn a_guest_with_a_clock_that_is_too_fast_is_not_used() {
    if Accelerator::choose().unwrap().accelerator != Accelerator::Tcg {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let environment = environment(&cache);
    // The kernel takes this for the frequency of the processor's counter instead of measuring it.
    // It is lower than that of any host.
    let kernel_parameters = vec!["tsc_early_khz=300000".to_owned()];
    let machine = Machine { kernel_parameters, ..Machine::default() };
    let booted = Sandbox::boot_in(&environment, "default", &machine).await;
    let Err(Error::Clock { guest, host }) = booted else {
        panic!("{:?}", booted.map(|sandbox| sandbox.id().to_owned()))
    };
    assert!(host < guest, "{host:?} {guest:?}");
}

/// How many connections of the earlier device are left over in the guest.
const LEFT_OVER: usize = 16;

/// Unplugs the vsock device and plugs another one, as between the guest that is saved and the one
/// that is restored. The back end serves each device as if it were its first one.
async fn plug_another_vsock_device(sandbox: &Sandbox) {
    let limit = sandbox.guest().scaled(Duration::from_secs(10));
    let deadline = Deadline::after(limit);
    let mut qmp = sandbox.monitor().await.unwrap();
    qmp.execute("device_del", json!({ "id": "vsock" })).await.unwrap();
    loop {
        let event = qmp.next_event(deadline).await.expect("the guest releases the device");
        if event.name == "DEVICE_DELETED" && event.data["device"] == "vsock" {
            break;
        }
    }
    let remove = json!({ "command-line": "chardev-remove vsock" });
    assert_eq!(qmp.execute("human-monitor-command", remove).await.unwrap(), "");
    let path = sandbox.run_directory().vm().join("vhost.sock");
    let address = json!({ "type": "unix", "data": { "path": path } });
    let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
    let chardev = json!({ "id": "vsock", "backend": backend });
    // No event reports that the back end listens again.
    while let Err(error) = qmp.execute("chardev-add", chardev.clone()).await {
        assert!(!deadline.remaining().is_zero(), "{error}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let device = json!({
        "driver": "vhost-user-vsock-pci", "id": "vsock", "chardev": "vsock", "bus": "vsock-port",
    });
    qmp.execute("device_add", device).await.unwrap();
    // What the back end sends before the guest has initialised the device may be lost.
    let patience = sandbox.guest().scaled(Duration::from_millis(100));
    let answers = async {
        while !matches!(tokio::time::timeout(patience, sandbox.observer().open()).await, Ok(Ok(_)))
        {
        }
    };
    sandbox
        .guest()
        .wait_for("the new vsock device", Duration::from_secs(10), answers)
        .await
        .unwrap();
}

#[tokio::test]
async fn connections_of_an_earlier_vsock_device_do_not_refuse_new_ones() {
    if Accelerator::choose().unwrap().accelerator != Accelerator::Tcg {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let mut sandbox = boot(&Environment::from_variables()).await;
    if *sandbox.guest().origin() != Origin::Restored {
        // Another test is saving this guest.
        sandbox = boot(&environment(&cache)).await;
    }
    // The observer does not look at a connection while it runs a command. So the connection stays
    // in the table of the guest's kernel, as one that was open when a guest was saved.
    for number in 0..LEFT_OVER {
        let observer = sandbox.observer().clone();
        let script = format!("touch /run/left-over-{number}; sleep 1000");
        tokio::spawn(async move { observer.run(&["/bin/busybox", "sh", "-c", &script]).await });
    }
    let all = format!("until [ $(ls /run | grep -c left-over) = {LEFT_OVER} ]; do sleep 0.1; done");
    sandbox.observer().shell(&all).await;
    plug_another_vsock_device(&sandbox).await;
    for number in 0..4 * LEFT_OVER {
        if let Err(error) = sandbox.observer().open().await {
            panic!("connection {number}: {}", error.chain());
        }
    }
}

/// Before a guest is saved, the harness closes its connection this way.
#[tokio::test]
async fn connection_is_closed_when_the_guest_has_closed_it() {
    let sandbox = boot(&Environment::from_variables()).await;
    let guest = sandbox.guest();
    let hybrid = sandbox.run_directory().vm().join("vm.vsock");
    let connected = UnixStream::connect(hybrid).await.unwrap();
    let back_end = Pid::from_raw(connected.peer_cred().unwrap().pid().unwrap());
    drop(connected);
    // As on a busy host: the back end runs late.
    kill(back_end, Signal::SIGSTOP).unwrap();
    let early = tokio::time::timeout(Duration::from_millis(200), sandbox.agent().close()).await;
    kill(back_end, Signal::SIGCONT).unwrap();
    assert!(early.is_err(), "the guest cannot know of it: {early:?}");
    let limit = Duration::from_secs(10);
    guest.wait_for("the connection's end", limit, sandbox.agent().close()).await.unwrap().unwrap();
    wait_for_connections(&sandbox, 1).await;
}
