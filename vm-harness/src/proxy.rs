//! Proxies between `ecr-runtime` and its peers: they record all traffic as JSON lines, and do to it
//! what their rules say.
//!
//! [`QmpProxy`] stands before QEMU's socket, [`AgentProxy`] before the guest's hybrid vsock.
//! Descriptors travel with their bytes.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use vm_harness::{Fault, QmpProxy, Rule, command, event, reply_to};
//!
//! # fn test(sandbox: &vm_harness::Sandbox) -> Result<(), vm_harness::Error> {
//! let proxy = QmpProxy::start_with(
//!     &sandbox.qmp_socket(),
//!     [
//!         // QEMU has the device, and nobody hears of it.
//!         Rule::on(reply_to("device_add"), Fault::Cut),
//!         // The second time its reply is late, and the event comes twice.
//!         Rule::on(reply_to("device_del"), Fault::Delay(Duration::from_millis(300))).nth(2),
//!         Rule::on(event("DEVICE_DELETED"), Fault::Twice).each(),
//!     ],
//! )?;
//! // ecr-runtime --qmp proxy.path() …
//! proxy.assert_all_met();
//! # Ok(())
//! # }
//! ```

mod connection;
mod descriptors;
mod fault;
mod message;
mod qmp;
mod rule;
mod traffic;
mod ttrpc;

use std::{
    fmt,
    marker::PhantomData,
    os::{
        fd::AsRawFd as _,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use nix::sys::socket::{Shutdown, shutdown};
use serde_json::Value;

use self::{connection::Connection, qmp::Qmp, rule::Rules, traffic::Traffic, ttrpc::Ttrpc};
pub use self::{
    fault::Fault,
    message::{Message, command, event, greeting, reply_to},
    rule::Rule,
};
use crate::{Error, Sandbox, run_dir::short_directory};

/// A proxy before QEMU's socket.
pub type QmpProxy = Proxy<Qmp>;
/// A proxy before the guest's hybrid vsock.
pub type AgentProxy = Proxy<Ttrpc>;

/// A proxy. Its socket is removed when it is dropped; connections end with their peers.
#[derive(Debug)]
pub struct Proxy<P> {
    path: PathBuf,
    directory: Option<tempfile::TempDir>,
    listener: UnixListener,
    shared: Arc<Shared>,
    protocol: PhantomData<P>,
}

/// What all connections of a proxy have together.
#[derive(Debug)]
struct Shared {
    traffic: Traffic,
    rules: Mutex<Rules>,
}

/// Who sent a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// `ecr-runtime`, or whoever else connected to the proxy.
    Client,
    /// QEMU or the agent.
    Server,
}

/// A message at the beginning of some bytes.
#[derive(Debug)]
pub struct Taken {
    length: usize,
    /// None for what no rule can name.
    message: Option<Message>,
    /// For the record.
    shown: Option<Value>,
}

/// How bytes become messages; a value for each connection.
pub trait Protocol: Default + Send + 'static {
    /// Takes the first whole message off `bytes`; `None` where there is no whole one yet.
    fn take(&mut self, from: Side, bytes: &[u8]) -> Option<Taken>;

    /// The question that was taken last was not passed on: no answer is to come.
    fn never_came(&mut self);
}

impl<P: Protocol> Proxy<P> {
    /// Listens on a socket of its own before `server`, records, and changes nothing. Each client
    /// gets a connection of its own.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start(server: &Path) -> Result<Self, Error> {
        Self::start_with(server, [])
    }

    /// The same with rules.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start_with(server: &Path, rules: impl IntoIterator<Item = Rule>) -> Result<Self, Error> {
        let directory = short_directory()?;
        let mut proxy = Self::start_at(&directory.path().join("proxy.sock"), server, rules, None)?;
        proxy.directory = Some(directory);
        Ok(proxy)
    }

    /// The same on the socket `path`, with the record in the file `record` as well.
    ///
    /// # Errors
    /// Socket or file cannot be made.
    pub fn start_at(
        path: &Path,
        server: &Path,
        rules: impl IntoIterator<Item = Rule>,
        record: Option<&Path>,
    ) -> Result<Self, Error> {
        let listener = UnixListener::bind(path).map_err(Error::file("listen on", path))?;
        let accepting = listener.try_clone().map_err(Error::file("listen on", path))?;
        let shared = Arc::new(Shared {
            traffic: Traffic::new(record)?,
            rules: Mutex::new(Rules::new(rules)),
        });
        let (server, passed) = (server.to_owned(), Arc::clone(&shared));
        thread::spawn(move || {
            for (number, client) in accepting.incoming().map_while(Result::ok).enumerate() {
                let Ok(server) = UnixStream::connect(&server) else { continue };
                Connection::<P>::open(number, client, server, &passed);
            }
        });
        Ok(Self { path: path.to_owned(), directory: None, listener, shared, protocol: PhantomData })
    }

    /// Its socket: what to name in `--qmp`.
    pub fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Everything so far: `{"at_us", "connection", "from": "client"|"server", "line"}` each, with
    /// `"fault"` where a rule was met.
    pub fn lines(&self) -> Vec<Value> {
        self.shared.traffic.lines()
    }

    /// The same as JSON lines, for a file.
    pub fn json_lines(&self) -> String {
        self.lines().iter().map(|line| format!("{line}\n")).collect()
    }

    /// Fails the test if a rule's message never came: then the test has shown nothing.
    ///
    /// # Panics
    /// A rule was not met.
    pub fn assert_all_met(&self) {
        let unmet = self.shared.rules().unmet();
        assert!(unmet.is_empty(), "nothing met the rules {unmet:?}:\n{}", self.json_lines());
    }
}

impl QmpProxy {
    /// The names of the commands so far, in order.
    pub fn commands(&self) -> Vec<String> {
        let from_client =
            self.lines().into_iter().filter(|line| line["from"] == Side::Client.to_string());
        from_client.filter_map(|line| line["line"]["execute"].as_str().map(str::to_owned)).collect()
    }
}

impl AgentProxy {
    /// What to name in `--agent`, for the plugin of the guest that it stands before.
    pub fn address(&self, sandbox: &Sandbox) -> String {
        format!("hvsock://{}:{}", self.path.display(), sandbox.plugin_port())
    }

    /// The methods that were called so far, in order.
    pub fn methods(&self) -> Vec<String> {
        let method =
            |line: Value| Some(line["line"]["request"].as_str()?.rsplit_once('/')?.1.to_owned());
        self.lines().into_iter().filter_map(method).collect()
    }
}

impl<P> Drop for Proxy<P> {
    fn drop(&mut self) {
        // Ends the wait for clients. A shutdown of what listens cannot fail.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Shared {
    fn rules(&self) -> std::sync::MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Server => "server",
        })
    }
}
