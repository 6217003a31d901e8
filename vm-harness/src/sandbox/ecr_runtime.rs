//! `ecr-runtime` as a process: how a test calls it, and what it returns.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Stdio,
    sync::LazyLock,
    time::{Duration, Instant},
};

use host_trigger::output::schema::schema;
use jsonschema::Validator;
use serde_json::Value;

use crate::{Guest, Volume};

/// The JSON Schema of the output.
static SCHEMA: LazyLock<Validator> = LazyLock::new(|| {
    jsonschema::validator_for(&schema()).expect("the schema of the output is valid")
});

/// A call that can be changed before it is run.
#[derive(Debug, Clone)]
pub struct EcrRuntime {
    program: PathBuf,
    run_dir: PathBuf,
    /// The user of a rootless VMM, by which the run directory is found.
    vmm_user: Option<u32>,
    /// The plugin's address, if it is not the agent's address as the shim reports it.
    plugin: Option<String>,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    user: Option<u32>,
}

/// A call that has ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Exit status; 128 + n where a signal ended it.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Time from its start to its end.
    pub elapsed: Duration,
}

/// One volume as the command reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugged {
    /// `attached`, `unchanged`.
    pub result: String,
    /// The volume object of the JSON output.
    pub volume: Value,
}

impl EcrRuntime {
    pub(crate) fn new(
        program: PathBuf,
        run_dir: &Path,
        vmm_user: Option<u32>,
        plugin: Option<String>,
    ) -> Self {
        Self {
            program,
            run_dir: run_dir.to_owned(),
            vmm_user,
            plugin,
            arguments: Vec::new(),
            environment: Vec::new(),
            user: None,
        }
    }

    /// Adds `block-volume hot-plug` with its sandbox, container and volumes, and JSON output.
    #[must_use]
    pub fn hot_plug(self, sandbox: &str, container: &str, volumes: &[(&Volume, &str)]) -> Self {
        self.hot_plug_nothing(sandbox, container).volumes("--device-path", volumes)
    }

    /// Adds `block-volume hot-plug` with its sandbox, container, and the volumes whose file systems
    /// are mounted, and JSON output.
    #[must_use]
    pub fn mount(self, sandbox: &str, container: &str, volumes: &[(&Volume, &str)]) -> Self {
        self.hot_plug_nothing(sandbox, container).volumes("--mount-path", volumes)
    }

    fn hot_plug_nothing(self, sandbox: &str, container: &str) -> Self {
        self.args(["block-volume", "hot-plug", "--output", "json"]).args([
            "--sandbox",
            sandbox,
            "--container",
            container,
        ])
    }

    /// Adds volumes, each with its path in the container: `--device-path` or `--mount-path`.
    #[must_use]
    pub fn volumes(self, kind: &str, volumes: &[(&Volume, &str)]) -> Self {
        volumes.iter().fold(self, |this, (volume, path)| {
            this.args(["--block-volume", volume.name(), kind, path])
        })
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Runs another copy of the program.
    #[must_use]
    pub fn program(mut self, program: &Path) -> Self {
        program.clone_into(&mut self.program);
        self
    }

    /// Uses another run directory.
    #[must_use]
    pub fn run_dir(mut self, run_dir: &Path) -> Self {
        run_dir.clone_into(&mut self.run_dir);
        self
    }

    /// Names another user of a rootless VMM, or none; then the run directory is named.
    #[must_use]
    pub fn vmm_user(mut self, user: Option<u32>) -> Self {
        self.vmm_user = user;
        self
    }

    /// Runs it as another user, by number.
    #[must_use]
    pub fn user(mut self, user: u32) -> Self {
        self.user = Some(user);
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start(&self) -> tokio::process::Child {
        let mut command = tokio::process::Command::new(&self.program);
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        let vmm_user = self.vmm_user.map(|user| user.to_string());
        if vmm_user.is_none() {
            command.arg("--run-dir").arg(&self.run_dir);
        }
        command
            .args(&self.arguments)
            .args(self.option("--agent", self.plugin.as_ref()))
            .args(self.option("--vmm-user", vmm_user.as_ref()))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", self.program.display()))
    }

    /// The option of this name, if the command takes it and has none yet.
    fn option<'a>(&self, name: &'a str, value: Option<&'a String>) -> Vec<&'a str> {
        let takes_option =
            self.arguments.first().is_some_and(|verb| verb == "block-volume" || verb == "check");
        let has_option = self.arguments.iter().any(|argument| argument == name);
        let value = value.filter(|_| takes_option && !has_option);
        value.map_or_else(Vec::new, |value| vec![name, value])
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// It cannot be started.
    pub async fn run(&self) -> Finished {
        let start = Instant::now();
        let output = self.start().wait_with_output().await.expect("a child can be waited for");
        Finished::new(&output, start.elapsed())
    }
}

impl Finished {
    /// Reads the output of a process that has ended.
    pub fn new(output: &std::process::Output, elapsed: Duration) -> Self {
        use std::os::unix::process::ExitStatusExt as _;
        let status =
            output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
        Self {
            status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            elapsed,
        }
    }

    /// Returns its JSON output.
    ///
    /// # Panics
    /// The output is not a JSON document, or does not match the JSON Schema of the output.
    pub fn json(&self) -> Value {
        let json: Value = serde_json::from_str(&self.stdout).unwrap_or_else(|error| {
            panic!(
                "the output is not a JSON document ({error}), exit status {}: {}{}",
                self.status, self.stdout, self.stderr
            )
        });
        if let Err(error) = SCHEMA.validate(&json) {
            panic!("the output does not match its schema: {error}: {json}");
        }
        json
    }

    /// Returns the volumes that it reports.
    ///
    /// # Panics
    /// It has failed.
    pub fn succeeded(&self, guest: &Guest) -> Vec<Plugged> {
        assert_eq!(
            self.status,
            0,
            "ecr-runtime failed: {}{}\n{}",
            self.stdout,
            self.stderr,
            guest.report()
        );
        let json = self.json();
        let volumes = json["volumes"].as_array().cloned().unwrap_or_default();
        assert!(!volumes.is_empty(), "it succeeded and reports no volumes: {json}");
        let result = json["result"].as_str().unwrap_or_default().to_owned();
        volumes.into_iter().map(|volume| Plugged { result: result.clone(), volume }).collect()
    }

    /// Returns the reason and the message of its failure.
    ///
    /// # Panics
    /// It ended with another exit status than `status`, or its JSON output differs from that.
    pub fn failed_with(&self, status: i32) -> (String, String) {
        assert_eq!(
            self.status, status,
            "another exit status was expected: {}{}",
            self.stdout, self.stderr
        );
        let json = self.json();
        let error = &json["error"];
        assert_eq!(error["exit_code"], status, "the exit code in the JSON output: {json}");
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        assert!(
            !text("reason").is_empty() && !text("message").is_empty(),
            "it failed without a reason or a message: {json}"
        );
        (text("reason"), text("message"))
    }
}

impl Plugged {
    /// Returns `major:minor` of the guest's device.
    pub fn device_number(&self) -> &str {
        self.text("device_number")
    }

    /// Returns the volume ID, which is the disk's serial number in the guest.
    pub fn id(&self) -> &str {
        self.text("id")
    }

    /// Returns the name of the guest's device.
    pub fn guest_device(&self) -> &str {
        self.text("guest_device")
    }

    /// Returns a text field of the volume object.
    ///
    /// # Panics
    /// The object has no such field.
    pub fn text(&self, key: &str) -> &str {
        self.volume[key]
            .as_str()
            .unwrap_or_else(|| panic!("the volume has no {key}: {}", self.volume))
    }
}
