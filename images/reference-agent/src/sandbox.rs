//! The sandbox: all containers, behind the agent's single lock.
//!
//! As in kata-agent this lock is global. It is held while a container is created, started or
//! removed, and while a process is started in it, across awaits. A caller that waits for a process
//! or its output first clones the process and releases the lock.

use std::{collections::HashMap, fs, path::Path, sync::Arc, time::Duration};

use agent_api::agent::{Process as ProcessSpec, Spec};
use agent_plugin::{ContainerError, DeviceRule};
use tokio::sync::Mutex;

use crate::{
    bundle::{self, Bundle},
    cgroups::{self, Cgroups},
    container::Container,
    crun::Crun,
    error::{Error, at},
    process::Process,
    reaper::Expectation,
    streams::Streams,
    terminal::Console,
};

/// The sandbox as it is shared by the services.
pub(crate) type SharedSandbox = Arc<Mutex<Sandbox>>;

/// The time limit for the end of a killed container, if the caller gives none.
const REMOVAL: Duration = Duration::from_secs(60);

/// The containers of the guest.
#[derive(Debug)]
pub(crate) struct Sandbox {
    crun: Crun,
    cgroups: Cgroups,
    no_pivot_root: bool,
    containers: HashMap<String, Container>,
}

impl Sandbox {
    /// An empty sandbox.
    pub(crate) fn new(crun: Crun, cgroups: Cgroups, no_pivot_root: bool) -> SharedSandbox {
        Arc::new(Mutex::new(Self { crun, cgroups, no_pivot_root, containers: HashMap::new() }))
    }

    /// Creates a container.
    pub(crate) async fn create(&mut self, id: &str, spec: &Spec) -> Result<(), Error> {
        check_id(id)?;
        if self.containers.contains_key(id) {
            return Err(Error::Exists(format!("container {id}")));
        }
        let linux = spec.Linux.as_ref().ok_or(Error::Missing("OCI.Linux"))?;
        let cgroup = cgroups::checked_path(&linux.CgroupsPath)?;
        let rules =
            self.cgroups.expand(cgroups::device_rules(&linux.Resources.get_or_default().Devices)?);
        let config = bundle::config(spec, &rules)?;
        self.cgroups.allow_in_pod(&cgroup, &rules)?;

        let bundle = Bundle::create(id, &config)?;
        let directory = bundle.directory();
        let pid_file = directory.join("pid");
        let (streams, child) = Streams::new()?;
        let mut arguments = vec!["--bundle".as_ref(), directory, "--pid-file".as_ref(), &pid_file];
        arguments.extend(self.no_pivot_root.then_some(Path::new("--no-pivot")));
        arguments.push(Path::new(id));
        let expectation = self.crun.run(directory, "create", &arguments, Some(child)).await?;
        let (pid, init) = left_by_crun(&expectation, &pid_file, streams)?;
        self.containers.insert(id.to_owned(), Container::created(bundle, cgroup, rules, pid, init));
        Ok(())
    }

    /// Starts a created container.
    pub(crate) async fn start(&mut self, id: &str) -> Result<(), Error> {
        let container =
            self.containers.get_mut(id).ok_or_else(|| Error::UnknownContainer(id.to_owned()))?;
        match container.running() {
            Err(ContainerError::Created) => {}
            Err(_) => return Err(wrong_state(id, "stopped and cannot be started")),
            Ok(()) => return Err(wrong_state(id, "running already")),
        }
        container.pin()?;
        let started = self.crun.run(container.bundle.directory(), "start", &[id], None).await;
        if started.is_err() {
            container.unpin();
        }
        started.map(|_| ())
    }

    /// Starts another process in a container.
    pub(crate) async fn exec(
        &mut self,
        id: &str,
        exec: &str,
        process: &ProcessSpec,
    ) -> Result<(), Error> {
        check_id(exec)?;
        let container =
            self.containers.get_mut(id).ok_or_else(|| Error::UnknownContainer(id.to_owned()))?;
        container.running().map_err(|_| wrong_state(id, "not running"))?;
        if container.process(id, exec).is_some() {
            return Err(Error::Exists(format!("process {exec}")));
        }
        let specification =
            container.bundle.write("process.json", &bundle::process_config(process)?)?;
        let directory = container.bundle.directory();
        let pid_file = directory.join("exec-pid");
        let mut arguments = vec![
            "--detach".as_ref(),
            "--process".as_ref(),
            specification.as_path(),
            "--pid-file".as_ref(),
            &pid_file,
        ];
        let (streams, expectation) = if process.Terminal {
            let console = Console::listen(directory)?;
            arguments.extend(["--console-socket".as_ref(), console.path(), Path::new(id)]);
            let expectation = self.crun.run(directory, "exec", &arguments, None).await?;
            (Streams::terminal(console.received()?)?, expectation)
        } else {
            let (streams, child) = Streams::new()?;
            arguments.push(Path::new(id));
            (streams, self.crun.run(directory, "exec", &arguments, Some(child)).await?)
        };
        let (_, process) = left_by_crun(&expectation, &pid_file, streams)?;
        container.execs.insert(exec.to_owned(), Arc::new(process));
        Ok(())
    }

    /// Sets a container's device rules. Without rules it changes nothing.
    pub(crate) async fn update(&mut self, id: &str, rules: Vec<DeviceRule>) -> Result<(), Error> {
        let container =
            self.containers.get_mut(id).ok_or_else(|| Error::UnknownContainer(id.to_owned()))?;
        if rules.is_empty() {
            return Ok(());
        }
        let rules = self.cgroups.expand(rules);
        self.cgroups.allow_in_pod(&container.cgroup, &rules)?;
        let resources = container.bundle.write("resources.json", &bundle::resources(&rules))?;
        let arguments = ["-r".as_ref(), resources.as_path(), Path::new(id)];
        self.crun.run(container.bundle.directory(), "update", &arguments, None).await?;
        container.device_rules = rules;
        Ok(())
    }

    /// Freezes the processes of a container, or lets them go on.
    pub(crate) async fn set_paused(&mut self, id: &str, pause: bool) -> Result<(), Error> {
        let container =
            self.containers.get_mut(id).ok_or_else(|| Error::UnknownContainer(id.to_owned()))?;
        match container.running() {
            Ok(()) if pause => {}
            Err(ContainerError::Paused) if !pause => {}
            _ => return Err(wrong_state(id, if pause { "not running" } else { "not paused" })),
        }
        let command = if pause { "pause" } else { "resume" };
        self.crun.run(container.bundle.directory(), command, &[id], None).await?;
        container.is_paused = pause;
        Ok(())
    }

    /// Kills a container and removes everything of it.
    pub(crate) async fn remove(&mut self, id: &str, limit: Option<Duration>) -> Result<(), Error> {
        let container =
            self.containers.get(id).ok_or_else(|| Error::UnknownContainer(id.to_owned()))?;
        let limit = limit.unwrap_or(REMOVAL);
        let removal = async {
            self.crun.run(container.bundle.directory(), "delete", &["--force", id], None).await?;
            container.init.wait().await;
            Ok(())
        };
        let timed_out =
            |_| Error::TimedOut { awaited: format!("the removal of container {id}"), limit };
        tokio::time::timeout(limit, removal).await.map_err(timed_out)??;
        self.containers.remove(id);
        Ok(())
    }

    /// Removes all containers.
    pub(crate) async fn destroy(&mut self) -> Result<(), Error> {
        for id in self.containers.keys().cloned().collect::<Vec<_>>() {
            self.remove(&id, None).await?;
        }
        Ok(())
    }

    /// Returns a container.
    pub(crate) fn container(&self, id: &str) -> Option<&Container> {
        self.containers.get(id)
    }

    /// Returns a process, for use without the lock.
    pub(crate) fn process(&self, id: &str, process: &str) -> Result<Arc<Process>, Error> {
        let container =
            self.containers.get(id).ok_or_else(|| Error::UnknownContainer(id.to_owned()))?;
        let unknown =
            || Error::UnknownProcess { container: id.to_owned(), process: process.to_owned() };
        container.process(id, process).cloned().ok_or_else(unknown)
    }

    /// Closes the streams of a process whose exit status goes to a caller, and forgets it: later
    /// calls with its ID fail. A first process, too: the container remains until it is removed.
    pub(crate) fn forget(&mut self, id: &str, process: &Arc<Process>) {
        process.close();
        if let Some(container) = self.containers.get_mut(id) {
            container.forget(process);
        }
    }
}

/// Returns the process that crun has left to the agent, by its pid file.
fn left_by_crun(
    expectation: &Expectation,
    pid_file: &Path,
    streams: Streams,
) -> Result<(u32, Process), Error> {
    let wrong = || {
        at(format!("{} has no process ID", pid_file.display()))(
            std::io::ErrorKind::InvalidData.into(),
        )
    };
    let text =
        fs::read_to_string(pid_file).map_err(at(format!("reading {}", pid_file.display())))?;
    let pid = text.trim().parse().map_err(|_| wrong())?;
    Ok((pid, Process::new(pid, expectation.watch(pid), streams)?))
}

fn wrong_state(container: &str, state: &'static str) -> Error {
    Error::WrongState { container: container.to_owned(), state }
}

/// kata-agent's rule for IDs, which become names of files and cgroups.
fn check_id(id: &str) -> Result<(), Error> {
    let mut characters = id.chars();
    let starts_well = characters.next().is_some_and(|first| first.is_ascii_alphanumeric());
    if starts_well
        && id.len() <= 128
        && characters.all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
    {
        return Ok(());
    }
    Err(Error::BadId(id.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_safe_file_names() {
        for good in ["c1", "exec-1.2_3", "0"] {
            check_id(good).unwrap();
        }
        let long = "x".repeat(129);
        for bad in ["", ".", "..", "-x", "a/b", "a b", "é", &long] {
            assert!(matches!(check_id(bad), Err(Error::BadId(_))), "{bad}");
        }
    }
}
