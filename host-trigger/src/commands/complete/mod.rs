//! Completion of names in bash: of pods, containers, sandboxes and volumes. `completions bash`
//! prints a function that starts the program as `ecr-runtime __complete LINE WORD`. It is quick and
//! silent: what cannot be told in time is not completed.

use std::{ffi::OsStr, path::PathBuf, time::Duration};

use crate::{
    Deadline, Error,
    cri::Endpoint,
    host::lock,
    kata::sandbox::{self, Sandbox, Search},
    ops::{pod_names::PodNames, session},
    pod::PodName,
    qemu::volume_state::KnownVolume,
};

mod line;

use line::{Line, Wanted};

/// The word that asks for names; no command is called so.
pub(crate) const WORD: &str = "__complete";
/// What `completions bash` adds to clap's script, whose function `@OTHERS@` stands for.
const BASH: &str = include_str!("names.bash");
/// The maximum time for everything.
const TIMEOUT: Duration = Duration::from_secs(4);
/// The maximum time for the container engine.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(2);
/// The maximum time for another run that works on the sandbox.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);

/// Returns the names that complete `line`, as bash wants them in place of `word`: what it takes for
/// the word that is being typed, which begins after a `=` or `:`. `None` if no name is wanted.
pub(crate) async fn run(line: &str, word: &str) -> Option<Vec<String>> {
    let line = Line::parse(line);
    let (wanted, prefix) = line.wanted()?;
    let context = Context::new(&line);
    let found = context.deadline.wait(context.names(wanted)).await;
    let mut names = found.ok().and_then(Result::ok).unwrap_or_default();
    if wanted == Wanted::Pod && !names.iter().any(|name| name.starts_with(prefix)) {
        names = names
            .iter()
            .filter_map(|name| Some(name.strip_prefix("default/")?.to_owned()))
            .collect();
    }
    names.sort_unstable();
    names.dedup();
    let before = prefix.strip_suffix(word).unwrap_or_default().len();
    let names = names.iter().filter(|name| name.starts_with(prefix) && is_plain(name));
    Some(names.map(|name| name[before..].to_owned()).collect())
}

/// Adds the function that completes names to `script`, clap's for bash.
pub(crate) fn with_names(script: &str) -> String {
    // clap_complete 4.6 calls the commands of a program with a hyphen in its name in two ways, and
    // so completes none of their options.
    let script = script.replace("ecr__subcmd__runtime", "ecr__runtime");
    let others = script.split_once("complete -F ");
    match others.and_then(|(_, rest)| rest.split_whitespace().next()) {
        Some(others) => format!("{script}{}", BASH.replace("@OTHERS@", others)),
        None => script,
    }
}

/// Whether a shell takes `name` for one word as it is.
fn is_plain(name: &str) -> bool {
    name.chars().all(|c| c.is_ascii_alphanumeric() || "/:._-+@,%".contains(c))
}

/// What the rest of the line says.
struct Context<'a> {
    search: Search,
    pod: Option<PodName>,
    cri: Option<&'a str>,
    deadline: Deadline,
}

impl<'a> Context<'a> {
    fn new(line: &'a Line) -> Self {
        let search = Search {
            run_dir: line.value("--run-dir").map(PathBuf::from),
            sandbox: line.value("--sandbox").map(str::to_owned),
            container: line.value("--container").map(str::to_owned),
            qmp: line.value("--qmp").map(PathBuf::from),
            vmm_user: line.value("--vmm-user").and_then(|user| user.parse().ok()),
            ..Search::default()
        };
        let pod = line.value("--pod").and_then(|pod| pod.parse().ok());
        Self { search, pod, cri: line.value("--cri"), deadline: Deadline::after(TIMEOUT) }
    }

    async fn names(&self, wanted: Wanted) -> Result<Vec<String>, Error> {
        let roots = sandbox::roots(self.search.run_dir.as_deref(), self.search.vmm_user);
        let ids = sandbox::all(&roots)?;
        match wanted {
            Wanted::Sandbox => Ok(ids),
            Wanted::Pod => {
                let names = self.pods(&ids).await;
                let pods = ids.iter().filter_map(|id| names.of(id));
                Ok(pods.map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect())
            }
            Wanted::Container => self.containers(&ids).await,
            Wanted::Volume | Wanted::DevicePath | Wanted::MountPath => {
                self.volumes(&ids, wanted).await
            }
        }
    }

    /// The names of the pods: those of the bundles, and if one is missing, those that the engine
    /// tells.
    async fn pods(&self, ids: &[String]) -> PodNames {
        let noted = PodNames::default();
        if ids.iter().all(|id| noted.of(id).is_some()) {
            return noted;
        }
        let Ok(endpoint) = Endpoint::find(self.cri.map(OsStr::new)) else { return noted };
        PodNames::ask(&endpoint, self.deadline.within(ENGINE_TIMEOUT)).await.unwrap_or(noted)
    }

    /// The sandbox, if the line names one or its pod.
    async fn sandbox(&self, ids: &[String]) -> Result<Sandbox, Error> {
        let Some(pod) = &self.pod else { return Sandbox::find(&self.search) };
        let names = self.pods(ids).await;
        let is_its = |id: &&String| names.of(id).is_some_and(|view| view.is_of(pod));
        let sandbox = ids.iter().find(is_its).cloned();
        Sandbox::find(&Search { sandbox, container: None, ..self.search.clone() })
    }

    async fn containers(&self, ids: &[String]) -> Result<Vec<String>, Error> {
        if self.pod.is_some() {
            let containers = self.sandbox(ids).await?.containers()?;
            let names = self.pods(ids).await;
            return Ok(containers.iter().filter_map(|id| names.of(id)?.container).collect());
        }
        let named = self.search.sandbox.clone();
        let mut found = Vec::new();
        for sandbox in named.map_or_else(|| ids.to_vec(), |id| vec![id]) {
            let search = Search { sandbox: Some(sandbox), container: None, ..self.search.clone() };
            found.extend(Sandbox::find(&search)?.containers()?);
        }
        Ok(found)
    }

    async fn volumes(&self, ids: &[String], wanted: Wanted) -> Result<Vec<String>, Error> {
        let sandbox = self.sandbox(ids).await?;
        // QEMU's socket serves one client. Another run is not disturbed.
        let directory = sandbox.lock_directory();
        let _lock = lock::acquire(&directory, self.deadline.within(LOCK_TIMEOUT)).await?;
        let (_qmp, inventory) = session::connect_qemu(&sandbox, self.deadline).await?;
        let known = inventory.attachments().into_iter();
        let of_mounts = wanted == Wanted::MountPath;
        let path = |known: KnownVolume| {
            let intent = known.attachment?.intent;
            (intent.mount.is_some() == of_mounts).then_some(intent.path)
        };
        Ok(match wanted {
            Wanted::Volume => known.map(|known| known.id.to_string()).collect(),
            _ => known.filter_map(path).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shell_would_expand_is_no_completion() {
        assert!(["shop/db-0", "/dev/xvda", "0123", "db:0"].into_iter().all(is_plain));
        assert!(!["$(x)", "a b", "`x`", "a;b", "a\nb", "*"].into_iter().any(is_plain));
    }
}
