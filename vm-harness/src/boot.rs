//! From a machine to an agent that answers: by a boot, or by a guest that was booted before and
//! saved.
//!
//! QEMU writes a guest to a file as a
//! [migration](https://www.qemu.org/docs/master/devel/migration/main.html) and begins with it
//! again. It does so for no guest with a vhost-user device, so the vsock device goes before and
//! comes after. A restored guest is told the time and gets new random numbers, as Kata does with
//! guests that it starts from a template.

use std::{
    fmt,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use block_volume_qmp::{Qmp, QmpError};
use guest_observer::Request;
use host_trigger::Deadline;
use rand::Rng as _;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, net::UnixListener};

use crate::{
    Accelerator, Agent, Console, Environment, Error, Guest, Machine, Observer, RunDir,
    environment::time_scale,
    qemu::{Files, Start, VSOCK, VSOCK_PORT},
    saved_boot::{Found, SavedBoots},
    vsock,
};

/// How long a guest may take to boot with KVM.
const BOOT: Duration = Duration::from_secs(30);
/// The same for a step of saving and restoring.
const STEP: Duration = Duration::from_secs(10);

/// How a guest came to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// From the kernel's first instruction, and why not from a file.
    Booted(String),
    /// From a file.
    Restored,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Booted(reason) => write!(formatter, "booted ({reason})"),
            Self::Restored => formatter.write_str("restored"),
        }
    }
}

/// What is booted, and by what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Boot<'a> {
    pub(crate) environment: &'a Environment,
    pub(crate) image: &'a Path,
    pub(crate) machine: &'a Machine,
    pub(crate) accelerator: Accelerator,
}

/// A running guest whose agent answers.
pub(crate) struct Running {
    pub(crate) cid: u32,
    pub(crate) run_dir: RunDir,
    pub(crate) guest: Arc<Guest>,
    pub(crate) agent: Agent,
    pub(crate) observer: Observer,
    pub(crate) hybrid: PathBuf,
}

impl Boot<'_> {
    /// Restores the guest `id` where it can, else boots it.
    pub(crate) async fn run(self, id: &str) -> Result<Running, Error> {
        let boots = SavedBoots::new(&self.environment.cache);
        let reason = match boots.find(self) {
            Found::Saved(file) => match self.restore(id, &file).await {
                Ok(running) => return Ok(running),
                Err(error) if error.is_of_the_machine() => return Err(error),
                Err(error) => boots.give_up(self, &format!("restoring fails: {}", error.chain())),
            },
            Found::Nothing(save) => {
                let to_save = Origin::Booted("to be saved".to_owned());
                let saved = match self.boot(id, Start::BootToSave, to_save).await {
                    Ok(running) => running.save(save.part()).await,
                    Err(error) => Err(error),
                };
                let restored = match saved {
                    Ok(()) => self.restore(id, &save.done()?).await,
                    Err(error) => Err(error),
                };
                match restored {
                    Ok(running) => return Ok(running),
                    Err(error) if error.is_of_the_machine() => return Err(error),
                    Err(error) => boots.give_up(self, &format!("saving fails: {}", error.chain())),
                }
            }
            Found::Unsuitable(reason) => reason,
        };
        tracing::info!(reason, "booting");
        self.boot(id, Start::Boot, Origin::Booted(reason)).await
    }

    async fn boot(self, id: &str, start: Start<'_>, origin: Origin) -> Result<Running, Error> {
        self.start(id, start, origin).await?.until_agent_answers().await
    }

    async fn restore(self, id: &str, file: &Path) -> Result<Running, Error> {
        let vm = self.start(id, Start::Restore(file), Origin::Restored).await?;
        let limit = vm.guest.scaled(STEP);
        vm.guest
            .wait_for("the restored guest", STEP, vm.plug_vsock(Deadline::after(limit)))
            .await??;
        let running = vm.until_agent_answers().await?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let restored = Request::Restored {
            seconds: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: now.subsec_nanos().into(),
            seed: rand::rng().random::<[u8; 32]>().to_vec(),
        };
        running.guest.wait_for("the observer", STEP, running.observer.ask(&restored)).await??;
        Ok(running)
    }

    /// Starts QEMU and the vsock device's back end.
    async fn start(self, id: &str, start: Start<'_>, origin: Origin) -> Result<Vm, Error> {
        let run_dir = RunDir::create(id)?;
        let vm = run_dir.vm();
        let (vhost, hybrid) = (vm.join("vhost.sock"), vm.join("vm.vsock"));
        let mut boot_files = ["vmlinux", "initramfs.cpio"].map(|name| self.image.join(name));
        if self.machine.user.is_some() {
            // The image may be below a directory that is not for everybody.
            for file in &mut boot_files {
                *file = run_dir.copy(file)?;
            }
        }
        let [kernel, initramfs] = boot_files;
        let files = Files {
            kernel,
            initramfs,
            qmp: vm.join("qmp.sock"),
            monitor: vm.join("harness.sock"),
            console: vm.join("console.log"),
            vhost: vhost.clone(),
            share: vm.join("share.sock"),
            stderr: vm.join("qemu.stderr"),
        };
        let name = format!("sandbox-{id}");
        let time_scale = time_scale(self.accelerator)?;
        let cid = rand::rng().random_range(3..=u32::MAX - 1);
        let messages = vm.join("vsock.stderr");
        let back_end = vsock::start(self.environment, cid, &vhost, &hybrid, &messages);
        let start_qemu =
            || self.machine.start(&self.environment.qemu, self.accelerator, &name, &files, start);
        let share = match &self.machine.share {
            Some(share) => {
                share.serve(self.environment, &files.share, &vm.join("share.stderr")).await?
            }
            None => None,
        };
        // A guest that is restored needs its back end later, one that boots needs it first.
        let (qemu, vsock) = match start {
            Start::Restore(_) => {
                let qemu = start_qemu()?;
                (qemu, back_end.await?)
            }
            Start::Boot | Start::BootToSave => {
                let vsock = back_end.await?;
                if let Some(user) = self.machine.user {
                    run_dir.give_to(user)?;
                }
                (start_qemu()?, vsock)
            }
        };
        let console = Console::new(files.console.clone());
        let guest = Arc::new(Guest {
            qemu,
            vsock,
            share,
            console,
            accelerator: self.accelerator,
            time_scale,
            origin,
        });
        Ok(Vm { cid, run_dir, guest, files, hybrid })
    }
}

/// A QEMU that was started.
struct Vm {
    cid: u32,
    run_dir: RunDir,
    guest: Arc<Guest>,
    files: Files,
    hybrid: PathBuf,
}

impl Vm {
    /// Plugs the vsock device into a guest that is being restored, as soon as it runs.
    async fn plug_vsock(&self, deadline: Deadline) -> Result<(), Error> {
        // Nothing announces that QEMU listens.
        let mut qmp = loop {
            match Qmp::connect_within(&self.files.monitor, deadline, deadline.remaining()).await {
                Err(QmpError::Connect { source, .. })
                    if matches!(
                        source.kind(),
                        ErrorKind::NotFound | ErrorKind::ConnectionRefused
                    ) =>
                {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                connected => break connected.map_err(failed)?,
            }
        };
        let status = qmp.execute("query-status", json!({})).await.map_err(failed)?;
        if status["status"] == "inmigrate" {
            wait_for(&mut qmp, deadline, "RESUME", |_| true).await?;
        }
        let address = json!({ "type": "unix", "data": { "path": self.files.vhost } });
        let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
        qmp.execute("chardev-add", json!({ "id": VSOCK, "backend": backend }))
            .await
            .map_err(failed)?;
        let device = json!({ "driver": "vhost-user-vsock-pci", "id": VSOCK, "chardev": VSOCK, "bus": VSOCK_PORT });
        qmp.execute("device_add", device).await.map_err(failed)?;
        Ok(())
    }

    async fn until_agent_answers(self) -> Result<Running, Error> {
        let Self { cid, run_dir, guest, files: _, hybrid } = self;
        let limit = guest.scaled(Duration::from_secs(60));
        let agent = guest
            .wait_for("the agent's first answer", BOOT, Agent::when_it_answers(&hybrid, limit))
            .await?;
        let observer = Observer::new(hybrid.clone(), guest.scaled(Duration::from_secs(15)));
        Ok(Running { cid, run_dir, guest, agent, observer, hybrid })
    }
}

impl Running {
    /// Writes a guest that was started with [`Start::BootToSave`] to `file`, and ends it.
    async fn save(self, file: &Path) -> Result<(), Error> {
        let Self { run_dir, guest, agent, .. } = self;
        // The connection would be in the file, too.
        drop(agent);
        let deadline = Deadline::after(guest.scaled(STEP));
        let socket = run_dir.vm().join("state.sock");
        let listener = UnixListener::bind(&socket).map_err(Error::file("listen on", &socket))?;
        // QEMU's end of the connection is the end of the file.
        let write = async {
            let (mut stream, _) = listener.accept().await?;
            let mut file = tokio::fs::File::create(file).await?;
            tokio::io::copy(&mut stream, &mut file).await?;
            file.flush().await
        };
        let send = async {
            let mut qmp =
                Qmp::connect(run_dir.vm().join("harness.sock"), deadline).await.map_err(failed)?;
            qmp.execute("device_del", json!({ "id": VSOCK })).await.map_err(failed)?;
            wait_for(&mut qmp, deadline, "DEVICE_DELETED", |data| data["device"] == VSOCK).await?;
            // It runs until all is written: one that was stopped would not run when it is restored.
            let events = json!([{ "capability": "events", "state": true }]);
            let capabilities = json!({ "capabilities": events });
            qmp.execute("migrate-set-capabilities", capabilities).await.map_err(failed)?;
            let uri = format!("unix:{}", socket.display());
            qmp.execute("migrate", json!({ "uri": uri })).await.map_err(failed)?;
            let ended = |data: &Value| data["status"] == "completed" || data["status"] == "failed";
            match wait_for(&mut qmp, deadline, "MIGRATION", ended).await?["status"] == "completed" {
                true => Ok(()),
                false => Err(Error::Monitor("QEMU cannot save the guest".to_owned())),
            }
        };
        let work = async {
            let (sent, written) = tokio::join!(send, write);
            sent.and(written.map_err(Error::file("write", file)))
        };
        guest.wait_for("the guest's state in a file", STEP, work).await?
    }
}

/// The data of the next event `name` that fits.
async fn wait_for(
    qmp: &mut Qmp,
    deadline: Deadline,
    name: &str,
    fits: impl Fn(&Value) -> bool,
) -> Result<Value, Error> {
    loop {
        match qmp.next_event(deadline).await {
            Some(event) if event.name == name && fits(&event.data) => return Ok(event.data),
            Some(_) => {}
            None => return Err(Error::Monitor(format!("{name} never came"))),
        }
    }
}

fn failed(error: QmpError) -> Error {
    Error::Monitor(error.to_string())
}
