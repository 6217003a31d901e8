//! Starts a VM whose agent answers: booted, or restored from a guest that was booted and saved
//! before.
//!
//! A restored guest gets the current time and new random numbers, as Kata does with guests that it
//! starts from a template.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use block_volume_qmp::Deadline;
use guest_observer::Request;

use super::{
    BootOptions,
    boot_snapshot::{BootSnapshots, Lookup, in_path},
    clock::Measured,
    machine::{MachineFiles, StartMode},
    migration,
    vsock::{self, Vsock},
};
use crate::{Agent, Console, Error, Guest, Observer, Origin, RunDir};

/// How long a guest may take to boot with KVM.
const BOOT: Duration = Duration::from_secs(30);
/// How long each step of saving and restoring may take with KVM.
const STEP: Duration = Duration::from_secs(10);

/// How long a guest that is booted sleeps, so that its clock can be compared with the host's.
const CLOCK: Duration = Duration::from_millis(250);
/// The same for a guest that is to be saved: its clock is that of many tests.
const CLOCK_TO_SAVE: Duration = Duration::from_secs(1);
/// How often a guest whose clock is wrong is booted.
const BOOTS: usize = 3;

/// A running guest whose agent answers.
pub(crate) struct BootedVm {
    pub(crate) cid: u32,
    pub(crate) run_dir: RunDir,
    pub(crate) guest: Arc<Guest>,
    pub(crate) agent: Agent,
    pub(crate) observer: Observer,
    pub(crate) vsock: Vsock,
}

impl BootOptions<'_> {
    /// Restores the guest `id` if that is possible, and boots it otherwise.
    pub(crate) async fn run(self, id: &str) -> Result<BootedVm, Error> {
        let snapshots = BootSnapshots::new(&self.environment.cache);
        let reason = match snapshots.find(self) {
            Lookup::Found(file) => match self.restore(id, &file).await {
                Ok(vm) => return Ok(vm),
                Err(error) if error.is_of_the_machine() => return Err(error),
                Err(error) => {
                    snapshots.give_up(self, &format!("restoring fails: {}", error.chain()))
                }
            },
            Lookup::Absent(writer) => {
                let to_save = Origin::Booted("to be saved".to_owned());
                let saved = match self.boot(id, StartMode::BootToSave, to_save).await {
                    Ok(vm) => vm.save(writer.part()).await,
                    Err(error) => Err(error),
                };
                let restored = match saved {
                    Ok(()) => self.restore(id, &writer.finish()?).await,
                    Err(error) => Err(error),
                };
                match restored {
                    Ok(vm) => return Ok(vm),
                    Err(error) if error.is_of_the_machine() => return Err(error),
                    Err(error) => {
                        snapshots.give_up(self, &format!("saving fails: {}", error.chain()))
                    }
                }
            }
            Lookup::Unsuitable(reason) => reason,
        };
        tracing::info!(reason, "booting");
        self.boot(id, StartMode::Boot, Origin::Booted(reason)).await
    }

    /// Boots a guest whose clock is right. One that was calibrated wrongly, on a busy host, is
    /// ended and another one is booted.
    async fn boot(self, id: &str, mode: StartMode<'_>, origin: Origin) -> Result<BootedVm, Error> {
        let wait = if matches!(mode, StartMode::BootToSave) { CLOCK_TO_SAVE } else { CLOCK };
        let mut boots = 1;
        loop {
            let vm = self.start(id, mode, origin.clone()).await?.until_agent_answers().await?;
            let measured = vm
                .guest
                .wait_for("the observer", STEP, Measured::during(&vm.observer, wait))
                .await??;
            match measured.check() {
                Ok(()) => {
                    if self.machine.user.is_some() && !self.machine.rootless {
                        vm.run_dir.take_back()?;
                    }
                    return Ok(vm);
                }
                Err(error) if boots == BOOTS => return Err(error),
                Err(error) => tracing::warn!("booting again: {error}"),
            }
            boots += 1;
        }
    }

    async fn restore(self, id: &str, file: &Path) -> Result<BootedVm, Error> {
        let vm = self.start(id, StartMode::Restore(file), Origin::Restored).await?;
        let deadline = Deadline::after(vm.guest.scaled(STEP));
        let plug = migration::plug_vsock(&vm.files.monitor, &vm.files.vhost, deadline);
        vm.guest.wait_for("the restored guest", STEP, plug).await??;
        let vm = vm.until_agent_answers().await?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut seed = vec![0; 32];
        fastrand::fill(&mut seed);
        let restored = Request::Restored {
            seconds: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: now.subsec_nanos().into(),
            seed,
        };
        vm.guest.wait_for("the observer", STEP, vm.observer.ask(&restored)).await??;
        Ok(vm)
    }

    /// Starts QEMU and the servers of its devices.
    async fn start(
        self,
        id: &str,
        mode: StartMode<'_>,
        origin: Origin,
    ) -> Result<StartedVm, Error> {
        let run_dir = match (&self.machine.run_dir, self.machine.user) {
            (Some(root), _) => RunDir::create_in(root, id)?,
            (None, Some(user)) if self.machine.rootless => RunDir::create_rootless(id, user)?,
            (None, _) => RunDir::create(id)?,
        };
        let vm = run_dir.vm();
        let hybrid = vm.join("vm.vsock");
        let cid = fastrand::u32(3..u32::MAX);
        let [kernel, initramfs] = ["vmlinux", "initramfs.cpio"].map(|name| self.image.join(name));
        let mut boot_files = [kernel, initramfs, self.environment.ecr_qemu()?];
        if self.machine.user.is_some() {
            // They may be in a directory that this user cannot search.
            for file in &mut boot_files {
                *file = run_dir.copy(file)?;
            }
        }
        let [kernel, initramfs, wrapper] = boot_files;
        let files = MachineFiles::new(&vm, kernel, initramfs, cid);
        let name = format!("sandbox-{id}");
        let time_scale = self.accelerator.configured_time_scale()?;
        let messages = vm.join("vsock.stderr");
        let back_end = async {
            if self.machine.native_vsock {
                return Ok(None);
            }
            vsock::start(self.environment, cid, &files.vhost, &hybrid, &messages).await.map(Some)
        };
        let programs = (&*in_path(&self.environment.qemu), &*wrapper);
        let start_qemu = || self.machine.start(programs, self.accelerator, &name, &files, mode);
        let share = match &self.machine.share {
            Some(share) => {
                share.serve(self.environment, &files.share, &vm.join("share.stderr")).await?
            }
            None => None,
        };
        // A guest that boots needs its back end first, one that is restored needs it later.
        let (qemu, vsock) = match mode {
            StartMode::Restore(_) => {
                let qemu = start_qemu()?;
                (qemu, back_end.await?)
            }
            StartMode::Boot | StartMode::BootToSave => {
                let vsock = back_end.await?;
                if let Some(user) = self.machine.user {
                    run_dir.give_to(user)?;
                }
                (start_qemu()?, vsock)
            }
        };
        let console = Console::new(files.console.clone());
        let guest = Arc::new(Guest {
            qemu_id: qemu.id(),
            qemu,
            vsock,
            share,
            console,
            accelerator: self.accelerator,
            time_scale,
            origin,
        });
        let vsock =
            if self.machine.native_vsock { Vsock::Native(cid) } else { Vsock::Hybrid(hybrid) };
        Ok(StartedVm { cid, run_dir, guest, files, vsock })
    }
}

/// A VM whose QEMU was started; its agent may not answer yet.
pub(super) struct StartedVm {
    pub(super) cid: u32,
    pub(super) run_dir: RunDir,
    pub(super) guest: Arc<Guest>,
    pub(super) files: MachineFiles,
    pub(super) vsock: Vsock,
}

impl StartedVm {
    pub(super) async fn until_agent_answers(self) -> Result<BootedVm, Error> {
        let Self { cid, run_dir, guest, files: _, vsock } = self;
        let limit = guest.scaled(Duration::from_secs(60));
        let agent = guest
            .wait_for("the agent's first answer", BOOT, Agent::when_it_answers(&vsock, limit))
            .await?;
        let observer = Observer::new(vsock.clone(), guest.scaled(Duration::from_secs(15)));
        Ok(BootedVm { cid, run_dir, guest, agent, observer, vsock })
    }
}

impl BootedVm {
    /// Writes a guest that was started with [`StartMode::BootToSave`] to `file`, and ends it.
    async fn save(self, file: &Path) -> Result<(), Error> {
        let Self { run_dir, guest, agent, .. } = self;
        // The file must not contain an open connection.
        guest
            .wait_for("the end of the agent's connection", STEP, agent.close())
            .await?
            .map_err(Error::file("close", "the connection to the agent"))?;
        let (monitor, stream) =
            (run_dir.vm().join("harness.sock"), run_dir.vm().join("state.sock"));
        let deadline = Deadline::after(guest.scaled(STEP));
        let work = migration::save(&monitor, &stream, file, deadline);
        guest.wait_for("the guest's state in a file", STEP, work).await?
    }
}
