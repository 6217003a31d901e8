//! A sandbox as on a Kata host, but without a guest: a real QEMU that never starts its CPU, and a
//! fake agent.

#![allow(unreachable_pub, clippy::allow_attributes, reason = "a test binary has no API")]

pub mod fake_agent;
pub mod fake_cri;
pub mod fake_mount;
pub mod fake_plug;
pub mod fake_unplug;
pub mod scripted_qemu;
pub mod shell;
pub mod volume;

use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, net::UnixListener, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use block_volume_qmp::{Event, PassedFd, Qmp};
use fake_agent::FakeAgent;
use host_trigger::{
    Deadline,
    error::ErrorBody,
    output::{
        envelope::{Envelope, NoBody},
        listing::Listing,
        repair_report::RepairReport,
        report::Report,
        schema::schema,
    },
    qemu::record::Record,
};
use jsonschema::Validator;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::process::Command;

/// A host with the sandbox `s1`, which has the containers `c1` and `c2`.
pub struct Host {
    directory: tempfile::TempDir,
    pub qemu: Child,
    pub agent: Arc<FakeAgent>,
    control: Qmp,
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        self.qemu.wait().expect("a killed child is reaped");
    }
}

/// The result of a run of the command.
#[derive(Debug)]
pub struct RunOutput {
    pub exit_code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl RunOutput {
    /// Returns the document on standard output; its error has the process's exit status.
    #[track_caller]
    fn document<B: DeserializeOwned>(&self) -> Envelope<B> {
        let document: Envelope<B> =
            serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"));
        let status = document.error.as_ref().map_or(0, |error| error.exit_code);
        assert_eq!(self.exit_code, Some(status.into()), "{self:?}");
        document
    }

    #[track_caller]
    pub fn report(&self) -> Envelope<Report> {
        assert_eq!(self.exit_code, Some(0), "{self:?}");
        self.document()
    }

    #[track_caller]
    pub fn listing(&self) -> Envelope<Listing> {
        assert_eq!(self.exit_code, Some(0), "{self:?}");
        self.document()
    }

    /// Returns what `list` or `inspect` printed before it ended with "state unknown".
    #[track_caller]
    pub fn listing_with_unknown(&self) -> Envelope<Listing> {
        let listing = self.document::<Listing>();
        let error = listing.error.as_ref().unwrap_or_else(|| panic!("{self:?}"));
        assert_eq!((error.reason.as_str(), self.exit_code), ("state_unknown", Some(15)));
        listing
    }

    /// Returns what `list --all` printed of sandboxes of which some could not be asked.
    #[track_caller]
    pub fn listing_with_unknown_sandbox(&self) -> Envelope<Listing> {
        let listing = self.document::<Listing>();
        let error = listing.error.as_ref().unwrap_or_else(|| panic!("{self:?}"));
        assert_eq!((error.reason.as_str(), self.exit_code), ("sandbox_unknown", Some(15)));
        listing
    }

    /// Returns the report of `repair`.
    #[track_caller]
    pub fn repaired(&self) -> Envelope<RepairReport> {
        self.document()
    }

    /// Returns the error of a command that failed.
    #[track_caller]
    pub fn failure(&self) -> ErrorBody {
        self.document::<NoBody>().error.unwrap_or_else(|| panic!("{self:?}"))
    }

    #[track_caller]
    pub fn assert_fails(&self, reason: &str, exit_code: u8) {
        let error = self.failure();
        assert_eq!((error.reason.as_str(), error.exit_code), (reason, exit_code), "{self:?}");
    }
}

/// The JSON Schema of the output.
static SCHEMA: LazyLock<Validator> =
    LazyLock::new(|| jsonschema::validator_for(&schema()).expect("the schema is valid"));

/// Checks a JSON document on standard output against the schema.
fn assert_valid(stdout: &str) {
    let Ok(document) = serde_json::from_str::<Value>(stdout) else { return };
    if let Err(e) = SCHEMA.validate(&document) {
        panic!("{e}: {document}");
    }
}

impl Host {
    pub async fn boot() -> Self {
        Self::boot_with(&["-device", "virtio-scsi-pci,id=scsi0"]).await
    }

    pub async fn boot_with(devices: &[&str]) -> Self {
        Self::boot_in(tempfile::tempdir().unwrap(), None, devices).await
    }

    /// Boots in a directory of the caller's, with a QEMU of another user, if one is given; then the
    /// directory becomes that user's.
    pub async fn boot_in(
        directory: tempfile::TempDir,
        user: Option<u32>,
        devices: &[&str],
    ) -> Self {
        for part in ["vm/s1", "sbs/s1/s1", "sbs/s1/c1", "sbs/s1/c2"] {
            fs::create_dir_all(directory.path().join(part)).unwrap();
        }
        // As with Kata, the sockets are already bound when QEMU gets them, so that a client need
        // not wait for QEMU. They are its standard input and output, the only descriptors that no
        // other child can inherit by accident.
        let listen =
            |name: &str| OwnedFd::from(UnixListener::bind(directory.path().join(name)).unwrap());
        let mut qemu = std::process::Command::new("qemu-system-x86_64");
        if let Some(user) = user {
            for part in ["", "vm", "vm/s1"] {
                std::os::unix::fs::chown(directory.path().join(part), Some(user), Some(user))
                    .unwrap();
            }
            qemu.uid(user).gid(user);
        }
        let qemu = qemu
            .args([
                "-name",
                "sandbox-s1",
                "-M",
                "q35",
                "-accel",
                "tcg",
                "-m",
                "16",
                "-display",
                "none",
                "-nodefaults",
                "-S",
            ])
            .args([
                "-chardev",
                "socket,id=q,fd=0,server=on,wait=off",
                "-mon",
                "chardev=q,mode=control",
            ])
            .args([
                "-chardev",
                "socket,id=c,fd=1,server=on,wait=off",
                "-mon",
                "chardev=c,mode=control",
            ])
            .args(["-trace", "handle_qmp_command", "-D"])
            .arg(directory.path().join("qmp.log"))
            .args(devices)
            .stdin(listen("vm/s1/qmp.sock"))
            .stdout(listen("control.sock"))
            .stderr(Stdio::inherit())
            .spawn()
            .expect("qemu-system-x86_64 starts");
        // On a busy machine QEMU starts later than the greeting's timeout.
        let control = connect(&directory.path().join("control.sock")).await;
        let agent = FakeAgent::serve(&directory.path().join("agent.sock")).await;
        let state = json!({
            "AgentState": {"URL": format!("unix://{}", directory.path().join("agent.sock").display())},
            "HypervisorState": {"Type": "qemu", "Pid": qemu.id()},
        });
        fs::write(directory.path().join("sbs/s1/persist.json"), state.to_string()).unwrap();
        Self { directory, qemu, agent, control }
    }

    pub fn path(&self, part: &str) -> PathBuf {
        self.directory.path().join(part)
    }

    /// Returns `ecr-runtime block-volume hot-plug` for this sandbox, with JSON output.
    pub fn command(&self, volumes: &[(&Path, &str)], more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ecr-runtime"));
        command.arg("--run-dir").arg(self.directory.path()).args([
            "block-volume",
            "hot-plug",
            "--output",
            "json",
        ]);
        if !more.contains(&"--container") && !more.contains(&"--pod") {
            command.args(["--sandbox", "s1", "--container", "c1"]);
        }
        for (volume, path) in volumes {
            command.arg("--block-volume").arg(volume).arg("--device-path").arg(path);
        }
        command.args(more).kill_on_drop(true);
        command
    }

    /// Mounts `volume` at `path` in the container.
    pub async fn mount(&self, volume: &Path, path: &str, more: &[&str]) -> RunOutput {
        let mut command = self.command(&[], more);
        run(command.arg("--block-volume").arg(volume).args(["--mount-path", path])).await
    }

    pub async fn plug(&self, volume: &Path, path: &str, more: &[&str]) -> RunOutput {
        run(&mut self.command(&[(volume, path)], more)).await
    }

    /// Runs `ecr-runtime block-volume VERB` for this sandbox, with JSON output.
    pub async fn verb(&self, verb: &str, more: &[&str]) -> RunOutput {
        run(&mut self.verb_command(verb, more)).await
    }

    pub fn verb_command(&self, verb: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ecr-runtime"));
        command.arg("--run-dir").arg(self.directory.path()).args([
            "block-volume",
            verb,
            "--output",
            "json",
        ]);
        if !["--sandbox", "--pod", "--all"].iter().any(|option| more.contains(option)) {
            command.args(["--sandbox", "s1"]);
        }
        command.args(more).kill_on_drop(true);
        command
    }

    /// Runs `command` in QEMU as another QMP client.
    pub async fn execute(&mut self, command: &str, arguments: Value) {
        self.query(command, arguments).await;
    }

    /// Passes QEMU a descriptor with the text `opaque`, into the set `set` or a new one.
    pub async fn add_fd(&mut self, opaque: &str, set: Option<u64>) -> PassedFd {
        self.control.set_deadline(Deadline::after(Duration::from_secs(30)));
        let null = fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
        self.control.add_fd(null, set, opaque).await.unwrap()
    }

    /// Passes QEMU `file` with the text `opaque`, into the set `set`.
    pub async fn pass(&mut self, file: fs::File, set: u64, opaque: &str) {
        self.control.set_deadline(Deadline::after(Duration::from_secs(30)));
        self.control.add_fd(file, Some(set), opaque).await.unwrap();
    }

    /// Returns all descriptor sets, block nodes and devices of QEMU, whoever added them.
    pub async fn snapshot(&mut self) -> Value {
        let mut snapshot = json!({});
        for (query, arguments) in [
            ("query-fdsets", json!({})),
            ("query-named-block-nodes", json!({"flat": true})),
            ("qom-list", json!({"path": "/machine/peripheral"})),
        ] {
            snapshot[query] = self.query(query, arguments).await;
        }
        snapshot
    }

    /// Returns the commands that QEMU has got, from its own log, with their arguments.
    pub fn commands(&self) -> Vec<Value> {
        let log = fs::read_to_string(self.path("qmp.log")).unwrap();
        let commands =
            log.lines().filter_map(|line| line.split_once(" req: ")).map(|(_, command)| {
                serde_json::from_str::<Value>(command).unwrap_or_else(|e| panic!("{e}: {command}"))
            });
        commands.collect()
    }

    /// Returns the commands that change anything.
    pub fn changes(&self) -> Vec<Value> {
        let only_reads = |command: &Value| {
            let name = command["execute"].as_str().unwrap();
            name.starts_with("query-")
                || name.starts_with("x-debug-query-")
                || ["qmp_capabilities", "qom-list", "qom-get"].contains(&name)
        };
        self.commands().into_iter().filter(|command| !only_reads(command)).collect()
    }

    /// Returns what QEMU reports of the medium of volume `id`.
    pub async fn medium(&mut self, id: &str) -> Value {
        let drives = self.query("query-block", json!({})).await;
        let drives = drives.as_array().unwrap();
        drives.iter().find(|drive| drive["qdev"] == format!("ecrblk-{id}")).unwrap()["inserted"]
            .clone()
    }

    /// Waits until QEMU has sent `event`.
    pub async fn await_event(&mut self, event: &str) -> Event {
        let deadline = Deadline::after(Duration::from_secs(30));
        loop {
            let sent = self.control.next_event(deadline).await.expect("QEMU sends the event");
            if sent.name == event {
                return sent;
            }
        }
    }

    /// Records `pid` as that of QEMU.
    pub fn record_pid(&self, pid: u32) {
        let file = self.path("sbs/s1/persist.json");
        let mut state: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        state["HypervisorState"]["Pid"] = json!(pid);
        fs::write(file, state.to_string()).unwrap();
    }

    /// Runs `command` in QEMU as another QMP client and returns the reply.
    pub async fn query(&mut self, command: &str, arguments: Value) -> Value {
        self.control.set_deadline(Deadline::after(Duration::from_secs(30)));
        self.control.execute(command, arguments).await.unwrap()
    }
}

/// Copies the program to where every user can run it.
pub fn public_copy() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_ecr-runtime"), directory.path().join("ecr-runtime")).unwrap();
    directory
}

async fn connect(path: &Path) -> Qmp {
    let deadline = Deadline::after(Duration::from_secs(30));
    loop {
        match Qmp::connect(path, deadline).await {
            Ok(qmp) => return qmp,
            Err(e) => assert!(!deadline.remaining().is_zero(), "{e}"),
        }
    }
}

/// Returns the records in a snapshot.
pub fn records(snapshot: &Value) -> Vec<Record> {
    let sets = snapshot["query-fdsets"].as_array().unwrap();
    let fds = sets.iter().flat_map(|set| set["fds"].as_array().unwrap());
    fds.filter_map(|fd| Record::from_opaque(fd["opaque"].as_str()?)).collect()
}

/// Runs `command`, and ends QEMU when the agent gets a request.
pub async fn run_and_lose_qemu(host: &mut Host, command: &mut Command) -> RunOutput {
    let agent = host.agent.clone();
    let (ran, ()) = tokio::join!(run(command), async {
        agent.request_received.notified().await;
        host.qemu.kill().unwrap();
        host.qemu.wait().unwrap();
    });
    ran
}

pub async fn run(command: &mut Command) -> RunOutput {
    let start = Instant::now();
    let output = tokio::time::timeout(Duration::from_secs(60), command.output());
    let output = output.await.expect("the command ends").unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_valid(&stdout);
    RunOutput {
        exit_code: std::os::unix::process::ExitStatusExt::signal(&output.status)
            .map_or(output.status.code(), |signal| Some(-signal)),
        stdout,
        stderr: String::from_utf8(output.stderr).unwrap(),
        took: start.elapsed(),
    }
}
