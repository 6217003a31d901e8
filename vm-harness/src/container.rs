//! A container in the guest, started and used through Kata's agent protocol as a shim does.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use agent_api::agent::{
    CloseStdinRequest, CreateContainerRequest, ExecProcessRequest, ReadStreamRequest, RemoveContainerRequest,
    SignalProcessRequest, StartContainerRequest, UpdateContainerRequest, WaitProcessRequest,
    WriteStreamRequest,
};
use protobuf::MessageField;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::{
    Agent, ContainerOptions, DeviceFilter, Error, Guest,
    spec::{process, resources, spec},
};

/// How long a call of the agent may take with KVM.
const CALL: Duration = Duration::from_secs(15);

/// How long a command may run that a person started.
const EXEC: Duration = Duration::from_secs(24 * 3600);

/// A container that was started. Dropping the value leaves it running: the guest ends with the sandbox.
#[derive(Debug, Clone)]
pub struct Container {
    id: String,
    agent: Agent,
    guest: Option<Arc<Guest>>,
    execs: Arc<AtomicU32>,
}

/// What a process in a container left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit status; 128 + n after signal n.
    pub status: i32,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

impl Container {
    /// Creates it, and doesn't start it.
    pub(crate) async fn create(
        id: &str,
        options: &ContainerOptions,
        agent: &Agent,
        guest: &Arc<Guest>,
    ) -> Result<Self, Error> {
        let this = Self { guest: Some(Arc::clone(guest)), ..Self::existing(id, agent) };
        let request = CreateContainerRequest {
            container_id: id.to_owned(),
            exec_id: id.to_owned(),
            OCI: MessageField::some(spec(id, options)),
            ..CreateContainerRequest::default()
        };
        this.call("CreateContainer", agent.service().create_container(agent.context(), &request)).await?;
        Ok(this)
    }

    /// The container whose id begins with `id`, in the sandbox that another process holds in `run_dir`.
    ///
    /// # Errors
    /// There is none, or more than one, or the agent doesn't answer.
    pub async fn find(run_dir: &Path, id: &str) -> Result<Self, Error> {
        let state = only_child(&run_dir.join("sbs"), "")?;
        let container = only_child(&state, id)?;
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let hybrid = run_dir.join("vm").join(name(&state)).join("vm.vsock");
        let limit = Duration::from_secs(10);
        let agent = tokio::time::timeout(limit, Agent::when_it_answers(&hybrid, EXEC)).await;
        let agent = agent.map_err(|_| Error::TimedOut {
            awaited: format!("an answer of the agent at {}", hybrid.display()),
            limit,
            report: String::new(),
        })?;
        Ok(Self::existing(&name(&container), &agent))
    }

    fn existing(id: &str, agent: &Agent) -> Self {
        Self { id: id.to_owned(), agent: agent.clone(), guest: None, execs: Arc::default() }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Starts it.
    ///
    /// # Errors
    /// The agent refuses, or doesn't answer.
    pub async fn start(&self) -> Result<(), Error> {
        let request = StartContainerRequest { container_id: self.id.clone(), ..Default::default() };
        self.call("StartContainer", self.agent.service().start_container(self.agent.context(), &request))
            .await?;
        Ok(())
    }

    /// Sends `signal` to its first process.
    ///
    /// # Errors
    /// The agent refuses, or doesn't answer.
    pub async fn signal(&self, signal: i32) -> Result<(), Error> {
        let request = SignalProcessRequest {
            container_id: self.id.clone(),
            exec_id: self.id.clone(),
            signal: signal.unsigned_abs(),
            ..Default::default()
        };
        self.call("SignalProcess", self.agent.service().signal_process(self.agent.context(), &request))
            .await?;
        Ok(())
    }

    /// Waits until its first process has ended, and returns the exit status.
    ///
    /// # Errors
    /// The agent refuses, or doesn't answer.
    pub async fn wait(&self) -> Result<i32, Error> {
        self.wait_process(&self.id).await
    }

    /// Kills its first process and waits until it has ended.
    ///
    /// # Errors
    /// The agent refuses, or doesn't answer.
    pub async fn kill(&self) -> Result<(), Error> {
        self.signal(libc::SIGKILL).await?;
        self.wait().await?;
        Ok(())
    }

    /// Removes it.
    ///
    /// # Errors
    /// The agent refuses, or doesn't answer.
    pub async fn remove(&self) -> Result<(), Error> {
        let request = RemoveContainerRequest { container_id: self.id.clone(), ..Default::default() };
        self.call("RemoveContainer", self.agent.service().remove_container(self.agent.context(), &request))
            .await?;
        Ok(())
    }

    /// Gives it new device rules, as `UpdateContainer` does.
    ///
    /// # Errors
    /// The agent refuses, or doesn't answer.
    pub async fn update(&self, filter: DeviceFilter) -> Result<(), Error> {
        let request = UpdateContainerRequest {
            container_id: self.id.clone(),
            resources: MessageField::some(resources(filter)),
            ..Default::default()
        };
        self.call("UpdateContainer", self.agent.service().update_container(self.agent.context(), &request))
            .await?;
        Ok(())
    }

    /// Runs a command in it, with `stdin` as its input.
    ///
    /// # Errors
    /// The command cannot be started; its exit status is no error.
    pub async fn try_exec<S: AsRef<str>>(&self, command: &[S], stdin: &[u8]) -> Result<Output, Error> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let status = self.exec_on(command, stdin, &mut stdout, &mut stderr).await?;
        Ok(Output { status, stdout, stderr })
    }

    /// Runs a command in it on the caller's streams, and returns its exit status. What is left of `stdin` when the command
    /// has ended is not read.
    ///
    /// # Errors
    /// The command cannot be started; its exit status is no error.
    pub async fn exec_on<S: AsRef<str>>(
        &self,
        command: &[S],
        stdin: impl AsyncRead,
        stdout: impl AsyncWrite,
        stderr: impl AsyncWrite,
    ) -> Result<i32, Error> {
        let exec_id = format!("exec-{}-{}", std::process::id(), self.execs.fetch_add(1, Ordering::Relaxed));
        let command: Vec<String> = command.iter().map(|word| word.as_ref().to_owned()).collect();
        let request = ExecProcessRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.clone(),
            process: MessageField::some(process(&command)),
            ..ExecProcessRequest::default()
        };
        self.call("ExecProcess", self.agent.service().exec_process(self.agent.context(), &request)).await?;
        let output = async {
            tokio::try_join!(
                self.drain(&exec_id, Stream::Stdout, stdout),
                self.drain(&exec_id, Stream::Stderr, stderr),
                self.wait_process(&exec_id),
            )
        };
        let input = async {
            // A command that ends without reading all of its input is none of our business.
            match self.feed(&exec_id, stdin).await {
                Ok(()) | Err(Error::Agent { source: ttrpc::Error::RpcStatus(_), .. }) => {
                    std::future::pending().await
                }
                Err(error) => error,
            }
        };
        tokio::select! {
            output = output => output.map(|((), (), status)| status),
            error = input => Err(error),
        }
    }

    /// Runs a command that succeeds, and returns its standard output.
    ///
    /// # Panics
    /// It cannot be started, or it fails.
    pub async fn exec<S: AsRef<str> + std::fmt::Debug>(&self, command: &[S]) -> Vec<u8> {
        self.exec_with_input(command, b"").await
    }

    /// Runs a command that fails, and returns its standard error.
    ///
    /// # Panics
    /// It cannot be started, or it succeeds.
    pub async fn exec_fails<S: AsRef<str> + std::fmt::Debug>(&self, command: &[S]) -> String {
        let output = self
            .try_exec(command, b"")
            .await
            .unwrap_or_else(|error| panic!("{command:?}: {}", error.chain()));
        assert_ne!(
            output.status,
            0,
            "in the container {command:?} succeeded and should not: {}",
            output.text()
        );
        output.error_text()
    }

    async fn exec_with_input<S: AsRef<str> + std::fmt::Debug>(&self, command: &[S], stdin: &[u8]) -> Vec<u8> {
        let output = self
            .try_exec(command, stdin)
            .await
            .unwrap_or_else(|error| panic!("{command:?}: {}", error.chain()));
        assert_eq!(output.status, 0, "in the container {command:?} failed: {}", output.error_text());
        output.stdout
    }

    /// Reads `range` of a file or a device in it.
    ///
    /// # Panics
    /// It cannot be read.
    pub async fn read(&self, path: &str, range: Range<u64>) -> Vec<u8> {
        let length = range.end - range.start;
        let command = [
            "dd".to_owned(),
            format!("if={path}"),
            "bs=64k".to_owned(),
            "iflag=skip_bytes,count_bytes,fullblock".to_owned(),
            format!("skip={}", range.start),
            format!("count={length}"),
        ];
        self.exec(&command).await
    }

    /// Writes `bytes` at `offset` of a file or a device in it, and waits until they have left the guest's cache.
    ///
    /// # Panics
    /// They cannot be written.
    pub async fn write(&self, path: &str, offset: u64, bytes: &[u8]) {
        let command = [
            "dd".to_owned(),
            format!("of={path}"),
            "bs=64k".to_owned(),
            "iflag=fullblock".to_owned(),
            "oflag=seek_bytes".to_owned(),
            format!("seek={offset}"),
            "conv=notrunc,fsync".to_owned(),
        ];
        self.exec_with_input(&command, bytes).await;
    }

    async fn feed(&self, exec_id: &str, stdin: impl AsyncRead) -> Result<(), Error> {
        tokio::pin!(stdin);
        let mut chunk = vec![0; 256 * 1024];
        loop {
            let length = stdin.read(&mut chunk).await.map_err(Error::file("read", "standard input"))?;
            if length == 0 {
                break;
            }
            let mut rest = &chunk[..length];
            while !rest.is_empty() {
                let request = WriteStreamRequest {
                    container_id: self.id.clone(),
                    exec_id: exec_id.to_owned(),
                    data: rest.to_vec(),
                    ..WriteStreamRequest::default()
                };
                let written = self
                    .call("WriteStdin", self.agent.service().write_stdin(self.agent.context(), &request))
                    .await?;
                rest = &rest[usize::try_from(written.len).unwrap_or(rest.len()).min(rest.len())..];
            }
        }
        let request = CloseStdinRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        self.call("CloseStdin", self.agent.service().close_stdin(self.agent.context(), &request)).await?;
        Ok(())
    }

    async fn drain(&self, exec_id: &str, stream: Stream, to: impl AsyncWrite) -> Result<(), Error> {
        tokio::pin!(to);
        let request = ReadStreamRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            len: 256 * 1024,
            ..ReadStreamRequest::default()
        };
        let (name, context) = (stream.name(), self.agent.context());
        loop {
            // A read waits for as long as the process is silent: it has the process's deadline, not a call's.
            let answer = match stream {
                Stream::Stdout => self.agent.service().read_stdout(context.clone(), &request).await,
                Stream::Stderr => self.agent.service().read_stderr(context.clone(), &request).await,
            };
            match answer {
                Ok(answer) if answer.data.is_empty() => break,
                Ok(answer) => to.write_all(&answer.data).await.map_err(Error::file("write to", name))?,
                // The protocol's way to say "end of file" is a status.
                Err(ttrpc::Error::RpcStatus(_)) => break,
                Err(source) => return Err(Error::Agent { call: name, source }),
            }
        }
        to.flush().await.map_err(Error::file("write to", name))
    }

    async fn wait_process(&self, exec_id: &str) -> Result<i32, Error> {
        let request = WaitProcessRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        let answer = self.agent.service().wait_process(self.agent.context(), &request).await;
        Ok(answer.map_err(|source| Error::Agent { call: "WaitProcess", source })?.status)
    }

    async fn call<T>(
        &self,
        call: &'static str,
        answer: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, Error> {
        let answer = match &self.guest {
            Some(guest) => guest.wait_for(call, CALL, answer).await?,
            None => answer.await,
        };
        answer.map_err(|source| Error::Agent { call, source })
    }
}

#[derive(Clone, Copy)]
enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "ReadStdout",
            Self::Stderr => "ReadStderr",
        }
    }
}

/// The one directory in `parent` whose name begins with `prefix`.
fn only_child(parent: &Path, prefix: &str) -> Result<PathBuf, Error> {
    let entries = fs::read_dir(parent).map_err(Error::file("read", parent))?;
    let mut children = entries.flatten().map(|entry| entry.path()).filter(|path| {
        path.is_dir() && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
    });
    match (children.next(), children.next()) {
        (Some(child), None) => Ok(child),
        (None, _) => Err(Error::Missing {
            what: format!("{}/{prefix}*", parent.display()),
            remedy: "name a run directory and a container that `vm-harness boot` printed",
        }),
        (Some(_), Some(_)) => Err(Error::Missing {
            what: format!("one single {}/{prefix}*", parent.display()),
            remedy: "more than one begins like this: give more of the id",
        }),
    }
}
