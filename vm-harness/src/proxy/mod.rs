//! Proxies between `ecr-runtime` and its peers: they record all traffic as JSON lines, and apply
//! faults to it by rules.
//!
//! [`QmpProxy`] is in front of QEMU's socket, [`AgentProxy`] in front of the guest's hybrid vsock.
//! Descriptors are passed on with their bytes.
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
//!         // QEMU adds the device, and its reply is lost.
//!         Rule::on(reply_to("device_add"), Fault::Cut),
//!         // The second reply to device_del is late, and the event comes twice.
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
mod framing;
mod message;
mod qmp;
mod rule;
mod shared;
mod traffic;
mod ttrpc;

use std::{
    marker::PhantomData,
    os::{
        fd::AsRawFd as _,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Instant,
};

use nix::sys::socket::{Shutdown, shutdown};
use serde_json::Value;

use self::{
    connection::Connection,
    framing::{Framing, Side},
    qmp::QmpFraming,
    rule::Rules,
    shared::Shared,
    traffic::Traffic,
    ttrpc::TtrpcFraming,
};
pub use self::{
    fault::Fault,
    message::{Message, command, event, greeting, reply_to},
    rule::Rule,
};
use crate::{
    Error, Sandbox,
    vm::run_dir::{self, short_directory},
};

/// A proxy in front of QEMU's socket.
pub type QmpProxy = Proxy<QmpFraming>;
/// A proxy in front of the guest's hybrid vsock.
pub type AgentProxy = Proxy<TtrpcFraming>;

/// A proxy. Its socket is removed when the value is dropped; connections end with their peers.
#[derive(Debug)]
pub struct Proxy<F> {
    path: PathBuf,
    directory: Option<tempfile::TempDir>,
    listener: UnixListener,
    shared: Arc<Shared>,
    framing: PhantomData<F>,
}

impl<F: Framing> Proxy<F> {
    /// Starts a proxy for the socket `server` that records and changes nothing. Each client gets a
    /// separate connection to the server.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start(server: &Path) -> Result<Self, Error> {
        Self::start_with(server, [])
    }

    /// Starts a proxy with rules.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start_with(server: &Path, rules: impl IntoIterator<Item = Rule>) -> Result<Self, Error> {
        let directory = short_directory()?;
        let mut proxy = Self::start_at(&directory.path().join("proxy.sock"), server, rules, None)?;
        proxy.directory = Some(directory);
        Ok(proxy)
    }

    /// Starts a proxy with rules on the socket `path`, and writes its record to the file `record`.
    ///
    /// # Errors
    /// The socket or the file cannot be made.
    pub fn start_at(
        path: &Path,
        server: &Path,
        rules: impl IntoIterator<Item = Rule>,
        record: Option<&Path>,
    ) -> Result<Self, Error> {
        let listener = UnixListener::bind(path).map_err(Error::file("listen on", path))?;
        // `ecr-runtime` talks to no other process than the recorded one, and this is another.
        run_dir::forget_qemu(server)?;
        let accepting = listener.try_clone().map_err(Error::file("listen on", path))?;
        let shared = Arc::new(Shared::new(Traffic::new(record)?, Rules::new(rules)));
        let (server, passed) = (server.to_owned(), Arc::clone(&shared));
        thread::spawn(move || {
            for (number, client) in accepting.incoming().map_while(Result::ok).enumerate() {
                let Ok(server) = UnixStream::connect(&server) else { continue };
                Connection::<F>::open(number, client, server, &passed);
            }
        });
        Ok(Self { path: path.to_owned(), directory: None, listener, shared, framing: PhantomData })
    }

    /// Returns the path of its socket, for `--qmp`.
    pub fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Returns the moment from which `at_us` of its messages counts.
    pub fn started(&self) -> Instant {
        self.shared.traffic.start()
    }

    /// Returns all messages so far, each as `{"at_us", "connection", "from": "client"|"server",
    /// "line"}`, with `"fault"` if a rule applied.
    pub fn lines(&self) -> Vec<Value> {
        self.shared.traffic.lines()
    }

    /// Returns all messages so far as JSON lines.
    pub fn json_lines(&self) -> String {
        self.lines().iter().map(|line| format!("{line}\n")).collect()
    }

    /// Fails the test if the message of a rule never came, because such a test proves nothing.
    ///
    /// # Panics
    /// A rule was not met.
    pub fn assert_all_met(&self) {
        let unmet = self.shared.rules().unmet();
        assert!(unmet.is_empty(), "no message met the rules {unmet:?}:\n{}", self.json_lines());
    }
}

impl QmpProxy {
    /// Returns the names of the commands so far, in order.
    pub fn commands(&self) -> Vec<String> {
        let from_client =
            self.lines().into_iter().filter(|line| line["from"] == Side::Client.to_string());
        from_client.filter_map(|line| line["line"]["execute"].as_str().map(str::to_owned)).collect()
    }
}

impl AgentProxy {
    /// Returns the address for `--agent`, of the plugin in the guest of `sandbox`.
    pub fn address(&self, sandbox: &Sandbox) -> String {
        format!("hvsock://{}:{}", self.path.display(), sandbox.plugin_port())
    }

    /// Returns the names of the methods that were called so far, in order.
    pub fn methods(&self) -> Vec<String> {
        let method =
            |line: Value| Some(line["line"]["request"].as_str()?.rsplit_once('/')?.1.to_owned());
        self.lines().into_iter().filter_map(method).collect()
    }
}

impl<F> Drop for Proxy<F> {
    fn drop(&mut self) {
        // Ends the accept loop. A shutdown of a listening socket cannot fail.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        let _ = std::fs::remove_file(&self.path);
    }
}
