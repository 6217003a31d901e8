//! Guests that are restored from the saved state of another guest.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::symlink,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

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
