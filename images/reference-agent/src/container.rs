//! A container: its bundle, its first process, the processes that were started in it, and the
//! handles for the plugin.
//!
//! Descriptors pin the namespaces before the start
//! ([`namespaces(7)`](https://man7.org/linux/man-pages/man7/namespaces.7.html)): a process ID can
//! be reused, a descriptor cannot refer to another namespace.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use agent_plugin::{ContainerError, DeviceRule};

use crate::{
    bundle::Bundle,
    error::{Error, at},
    process::Process,
};

/// A container that crun has created.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) bundle: Bundle,
    pub(crate) cgroup: PathBuf,
    /// The rules of its specification, or of its last update.
    pub(crate) device_rules: Vec<DeviceRule>,
    pub(crate) init: Arc<Process>,
    init_pid: u32,
    /// Whether a caller has the exit status of its first process.
    init_forgotten: bool,
    pub(crate) is_paused: bool,
    /// Set once it has been started.
    pinned: Option<Pinned>,
    pub(crate) execs: HashMap<String, Arc<Process>>,
}

/// Namespaces that are held open.
#[derive(Debug)]
struct Pinned {
    mount: OwnedFd,
    /// `None` if it is the agent's own.
    user: Option<OwnedFd>,
}

impl Container {
    /// A container that has not been started.
    pub(crate) fn created(
        bundle: Bundle,
        cgroup: PathBuf,
        device_rules: Vec<DeviceRule>,
        init_pid: u32,
        init: Process,
    ) -> Self {
        let init = Arc::new(init);
        Self {
            bundle,
            cgroup,
            device_rules,
            init,
            init_pid,
            init_forgotten: false,
            is_paused: false,
            pinned: None,
            execs: HashMap::new(),
        }
    }

    /// Pins its namespaces. A container stays in the namespaces that it was created with, so this
    /// is done before the start, while the first process certainly exists.
    pub(crate) fn pin(&mut self) -> Result<(), Error> {
        let pinned = pin(Path::new("/proc"), self.init_pid)
            .map_err(at(format!("opening the namespaces of process {}", self.init_pid)))?;
        self.pinned = Some(pinned);
        Ok(())
    }

    /// Reverts `pin` after a failed start.
    pub(crate) fn unpin(&mut self) {
        self.pinned = None;
    }

    /// Returns `Ok` if it runs.
    pub(crate) fn running(&self) -> Result<(), ContainerError> {
        if self.init.has_ended() {
            return Err(ContainerError::Stopped);
        }
        match self.pinned {
            Some(_) if self.is_paused => Err(ContainerError::Paused),
            Some(_) => Ok(()),
            None => Err(ContainerError::Created),
        }
    }

    /// Returns the handles of a container that is running or paused.
    fn handles(&self) -> Result<agent_plugin::Container, ContainerError> {
        let pinned = self.pinned.as_ref().ok_or(ContainerError::Created)?;
        let init = self.init.handle().ok_or(ContainerError::Stopped)?;
        let duplicate = |fd: &OwnedFd| {
            fd.try_clone().map_err(|error| ContainerError::Unreachable(error.to_string()))
        };
        Ok(agent_plugin::Container {
            init: duplicate(init)?,
            mount_namespace: duplicate(&pinned.mount)?,
            user_namespace: pinned.user.as_ref().map(duplicate).transpose()?,
            cgroup: self.cgroup.clone(),
            device_rules: self.device_rules.clone(),
        })
    }

    /// Returns the handles for the plugin, if it runs.
    pub(crate) fn running_handles(&self) -> Result<agent_plugin::Container, ContainerError> {
        self.running()?;
        self.handles()
    }

    /// Returns what the plugin can remove a volume from: a paused container, or what remains after
    /// the end of the first process. The namespaces stay pinned until the container is removed.
    pub(crate) fn remains(&self) -> Option<agent_plugin::Container> {
        if !self.init.has_ended() {
            return self.handles().ok();
        }
        let pinned = self.pinned.as_ref()?;
        let path = format!("/proc/self/fd/{}", pinned.mount.as_raw_fd());
        let (cgroup, rules) = (self.cgroup.clone(), self.device_rules.clone());
        agent_plugin::Container::remains(Path::new(&path), cgroup, rules).ok()
    }

    /// Returns a process: the first one by the container's own ID or an empty ID, or one that was
    /// started in it.
    pub(crate) fn process(&self, id: &str, process: &str) -> Option<&Arc<Process>> {
        match process {
            "" => self.init_if_known(),
            process if process == id => self.init_if_known(),
            process => self.execs.get(process),
        }
    }

    fn init_if_known(&self) -> Option<&Arc<Process>> {
        (!self.init_forgotten).then_some(&self.init)
    }

    /// Makes later calls for a process fail.
    pub(crate) fn forget(&mut self, process: &Arc<Process>) {
        self.init_forgotten |= Arc::ptr_eq(&self.init, process);
        self.execs.retain(|_, other| !Arc::ptr_eq(other, process));
    }
}

fn pin(proc: &Path, pid: u32) -> io::Result<Pinned> {
    let namespaces = proc.join(pid.to_string()).join("ns");
    let mount = File::open(namespaces.join("mnt"))?.into();
    let user = File::open(namespaces.join("user"))?;
    let own = fs::metadata(proc.join("self/ns/user"))?;
    let is_own = user.metadata()?.ino() == own.ino();
    Ok(Pinned { mount, user: (!is_own).then(|| user.into()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_user_namespace_is_not_pinned() {
        let pinned = pin(Path::new("/proc"), std::process::id()).unwrap();
        let own = fs::metadata("/proc/self/ns/mnt").unwrap().ino();
        assert_eq!(File::from(pinned.mount).metadata().unwrap().ino(), own);
        assert!(pinned.user.is_none());
    }

    #[test]
    fn the_namespaces_of_an_ended_process_cannot_be_pinned() {
        // No process has this ID: it is above the kernel's limit.
        assert_eq!(pin(Path::new("/proc"), 1 << 23).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
