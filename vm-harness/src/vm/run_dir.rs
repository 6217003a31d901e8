//! A run directory with the layout of Kata's Go runtime, and the shim's monitor socket.
//!
//! It has `vm/<sid>/{extra-monitor.sock,pid}`, `sbs/<sid>/persist.json`, `sbs/<sid>/<cid>/`, and
//! `sbs/<sid>/shim-monitor.sock`, which answers `GET /agent-url` with the agent's address. With a
//! rootless VMM it is `/run/user/UID/run/vc`, and the shim's socket is in `/run/vc/sbs/<sid>`.

use std::{
    convert::Infallible,
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    sync::Arc,
};

use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixListener, task::JoinHandle};

use crate::Error;

/// The directory of run directories. It is short, because the path of a socket has at most 107
/// bytes.
pub(crate) const BASE: &str = "/tmp";
const PREFIX: &str = "vmh-";

/// Returns the run directories of all sandboxes on this machine, and other directories of the
/// harness in [`BASE`].
pub(crate) fn all() -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(BASE).map_err(Error::file("read", BASE))?;
    let ours =
        entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    Ok(ours.map(|entry| entry.path()).collect())
}

/// Makes a directory for sockets. It is removed when the value is dropped.
pub(crate) fn short_directory() -> Result<tempfile::TempDir, Error> {
    let made = tempfile::Builder::new().prefix(PREFIX).tempdir_in(BASE);
    made.map_err(Error::file("make a directory in", BASE))
}

/// Removes QEMU's process ID from the state of the sandbox that has the socket `qmp`, if there is
/// one.
pub(crate) fn forget_qemu(qmp: &Path) -> Result<(), Error> {
    // <root>/vm/<sid>/extra-monitor.sock
    let (Some(vm), Some(root)) = (qmp.parent(), qmp.ancestors().nth(3)) else { return Ok(()) };
    let pid = vm.join("pid");
    if pid.exists() {
        fs::remove_file(&pid).map_err(Error::file("remove", &pid))?;
    }
    let file = root.join("sbs").join(vm.file_name().unwrap_or_default()).join("persist.json");
    let Ok(text) = fs::read(&file) else { return Ok(()) };
    let Ok(mut state) = serde_json::from_slice::<serde_json::Value>(&text) else { return Ok(()) };
    state["HypervisorState"]["Pid"] = 0.into();
    fs::write(&file, state.to_string()).map_err(Error::file("write", file))
}

/// Where the shim's socket of a rootless VMM is.
const SHIMS_OF_ROOTLESS: &str = "/run/vc/sbs";

/// The directory of a run directory's files.
#[derive(Debug)]
enum Root {
    /// Of this sandbox alone.
    Own(tempfile::TempDir),
    /// Of all sandboxes of a node: only this one's part is removed.
    Shared(PathBuf),
}

/// The run directory of one sandbox. It is removed when the value is dropped.
#[derive(Debug)]
pub struct RunDir {
    root: Root,
    /// The directory of the shim's socket, if it is not the sandbox's state.
    shim_dir: Option<PathBuf>,
    sandbox: String,
    shim: Option<JoinHandle<()>>,
}

impl RunDir {
    /// Makes the directories.
    ///
    /// # Errors
    /// A directory cannot be made.
    pub fn create(sandbox: &str) -> Result<Self, Error> {
        Self::make(Root::Own(short_directory()?), sandbox)
    }

    /// Makes the directories of one more sandbox below `root`.
    ///
    /// # Errors
    /// A directory cannot be made.
    pub fn create_in(root: &Path, sandbox: &str) -> Result<Self, Error> {
        Self::make(Root::Shared(root.to_owned()), sandbox)
    }

    /// Makes the directories of a rootless VMM's sandbox, which belong to its `user`. The caller
    /// has a `/run` of its own.
    ///
    /// # Errors
    /// A directory cannot be made, or the caller is not root.
    pub fn create_rootless(sandbox: &str, user: u32) -> Result<Self, Error> {
        let theirs = Path::new("/run/user").join(user.to_string());
        let mut this = Self::create_in(&theirs.join("run/vc"), sandbox)?;
        // Kata's directories inherit the owner of the one above.
        let (vm, state) = (this.vm(), this.sandbox_state());
        for directory in vm.ancestors().chain(state.ancestors()) {
            if directory.starts_with(&theirs) {
                chown(directory, Some(user), Some(user))
                    .map_err(Error::file("change the owner of", directory))?;
            }
        }
        let shim_dir = Path::new(SHIMS_OF_ROOTLESS).join(sandbox);
        fs::create_dir_all(&shim_dir).map_err(Error::file("make", &shim_dir))?;
        this.shim_dir = Some(shim_dir);
        Ok(this)
    }

    fn make(root: Root, sandbox: &str) -> Result<Self, Error> {
        let this = Self { root, shim_dir: None, sandbox: sandbox.to_owned(), shim: None };
        for directory in [this.vm(), this.sandbox_state()] {
            fs::create_dir_all(&directory).map_err(Error::file("make", directory))?;
        }
        Ok(this)
    }

    /// Returns the root, the value for `--run-dir`.
    pub fn path(&self) -> &Path {
        match &self.root {
            Root::Own(directory) => directory.path(),
            Root::Shared(directory) => directory,
        }
    }

    /// Returns the directory with the VM's sockets.
    pub fn vm(&self) -> PathBuf {
        self.path().join("vm").join(&self.sandbox)
    }

    /// Returns the directory with the sandbox's state.
    pub fn sandbox_state(&self) -> PathBuf {
        self.path().join("sbs").join(&self.sandbox)
    }

    /// Copies `file` into the directory with the VM's sockets, and returns the path of the copy.
    ///
    /// # Errors
    /// It cannot be copied.
    pub fn copy(&self, file: &Path) -> Result<PathBuf, Error> {
        let copy = self.vm().join(file.file_name().unwrap_or_default());
        fs::copy(file, &copy).map_err(Error::file("copy", file))?;
        Ok(copy)
    }

    /// Gives the directory of the VM, and what is in it, to a user, and lets every user search the
    /// root.
    ///
    /// # Errors
    /// The caller is not root.
    pub fn give_to(&self, user: u32) -> Result<(), Error> {
        let vm = self.vm();
        fs::set_permissions(self.path(), fs::Permissions::from_mode(0o711))
            .map_err(Error::file("set the mode of", self.path()))?;
        let inside = fs::read_dir(&vm).map_err(Error::file("read", &vm))?;
        for path in inside.filter_map(Result::ok).map(|entry| entry.path()).chain([vm]) {
            chown(&path, Some(user), Some(user))
                .map_err(Error::file("change the owner of", &path))?;
        }
        Ok(())
    }

    /// Gives the directory of the VM back to root, as a shim has it: with QEMU's sockets in it,
    /// which stay the user's.
    ///
    /// # Errors
    /// The caller is not root.
    pub fn take_back(&self) -> Result<(), Error> {
        let vm = self.vm();
        chown(&vm, Some(0), Some(0)).map_err(Error::file("change the owner of", vm))
    }

    /// Writes `persist.json`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_state(&self, agent_url: &str, qemu: u32) -> Result<(), Error> {
        let state = serde_json::json!({
            "SandboxContainer": self.sandbox,
            "State": "running",
            "AgentState": { "URL": agent_url },
            "HypervisorState": { "Type": "qemu", "Pid": qemu, "BlockIndexMap": {} },
        });
        let path = self.sandbox_state().join("persist.json");
        fs::write(&path, state.to_string()).map_err(Error::file("write", path))
    }

    /// Adds `container` to the sandbox.
    ///
    /// # Errors
    /// Its directory cannot be made.
    pub fn add_container(&self, container: &str) -> Result<(), Error> {
        let path = self.sandbox_state().join(container);
        fs::create_dir_all(&path).map_err(Error::file("make", &path))?;
        let state = path.join("persist.json");
        fs::write(&state, "{\"State\":\"running\"}").map_err(Error::file("write", state))
    }

    /// Removes `container` from the sandbox.
    pub fn remove_container(&self, container: &str) {
        // It may never have been added.
        let _ = fs::remove_dir_all(self.sandbox_state().join(container));
    }

    /// Copies what the VM's programs wrote (console, messages, records of proxies) to a directory
    /// of the sandbox's name in `artifacts`, and returns its path.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn keep_logs(&self, artifacts: &Path) -> Result<PathBuf, Error> {
        let kept = artifacts.join(&self.sandbox);
        fs::create_dir_all(&kept).map_err(Error::file("make", &kept))?;
        let entries = fs::read_dir(self.vm()).map_err(Error::file("read", self.vm()))?;
        let files =
            entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
        for file in files {
            fs::copy(file.path(), kept.join(file.file_name()))
                .map_err(Error::file("copy", file.path()))?;
        }
        Ok(kept)
    }

    /// Answers `GET /agent-url` as a shim does, for as long as this value lives.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn serve_shim(&mut self, agent_url: String) -> Result<(), Error> {
        let directory = self.shim_dir.clone().unwrap_or_else(|| self.sandbox_state());
        let path = directory.join("shim-monitor.sock");
        let listener = UnixListener::bind(&path).map_err(Error::file("listen on", path))?;
        let agent_url = Arc::<str>::from(agent_url);
        self.shim = Some(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let agent_url = Arc::clone(&agent_url);
                let answer = service_fn(move |request| {
                    let agent_url = Arc::clone(&agent_url);
                    async move { Ok::<_, Infallible>(shim_answer(&request, &agent_url)) }
                });
                // A client may close its connection at any time.
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
            }
        }));
        Ok(())
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if let Some(shim) = &self.shim {
            shim.abort();
        }
        if let Root::Shared(_) = self.root {
            for directory in
                [self.vm(), self.sandbox_state()].into_iter().chain(self.shim_dir.take())
            {
                // Nothing can be done about a failure, and the next sandbox has another ID.
                let _ = fs::remove_dir_all(directory);
            }
        }
    }
}

fn shim_answer<B>(request: &Request<B>, agent_url: &str) -> Response<Full<Bytes>> {
    let (status, body) = match (request.method().as_str(), request.uri().path()) {
        ("GET", "/agent-url") => (StatusCode::OK, agent_url.to_owned()),
        _ => (StatusCode::NOT_FOUND, "404 page not found\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_kept_and_sockets_are_not() {
        let run_dir = RunDir::create("s1").unwrap();
        fs::write(run_dir.vm().join("console.log"), "boot").unwrap();
        let _socket =
            std::os::unix::net::UnixListener::bind(run_dir.vm().join("qmp.sock")).unwrap();
        let artifacts = tempfile::tempdir().unwrap();
        let kept = run_dir.keep_logs(&artifacts.path().join("new")).unwrap();
        assert_eq!(fs::read_to_string(kept.join("console.log")).unwrap(), "boot");
        assert_eq!(fs::read_dir(&kept).unwrap().count(), 1);
    }

    #[test]
    fn of_a_shared_directory_only_its_own_part_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let [one, other] = ["s1", "s2"].map(|id| RunDir::create_in(root.path(), id).unwrap());
        assert_eq!(one.vm(), root.path().join("vm/s1"));
        drop(one);
        assert!(!root.path().join("vm/s1").exists() && !root.path().join("sbs/s1").exists());
        assert!(other.vm().exists() && other.sandbox_state().exists());
    }

    #[test]
    fn process_of_qemu_is_forgotten_and_the_rest_stays() {
        let run_dir = RunDir::create("s1").unwrap();
        run_dir.write_state("vsock://3:1024", 4711).unwrap();
        fs::write(run_dir.vm().join("pid"), "4711").unwrap();
        forget_qemu(&run_dir.vm().join("qmp.sock")).unwrap();
        let text = fs::read(run_dir.sandbox_state().join("persist.json")).unwrap();
        let state: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(state["HypervisorState"]["Pid"], 0);
        assert!(!run_dir.vm().join("pid").exists());
        assert_eq!(state["AgentState"]["URL"], "vsock://3:1024");
        forget_qemu(Path::new("/q")).unwrap();
    }
}
