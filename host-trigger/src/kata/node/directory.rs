//! A directory with Kata's configurations. Both runtimes apply *every* entry of its `config.d`, in
//! the order of their names, to whichever configuration of the directory they use. A drop-in for
//! one therefore changes all of them.

use std::path::{Path, PathBuf};

use toml_edit::{DocumentMut, Item};

use super::{
    drop_in::{self, Found},
    read_toml,
    settings::Settings,
    sorted_entries,
};
use crate::Error;

/// How the names of the wrapper and of its copies begin.
const WRAPPER: &str = "ecr-qemu";
/// QEMU's name among the hypervisors.
pub(super) const QEMU: &str = "qemu";

/// One configuration, with all drop-ins but ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Configuration {
    /// Its file.
    pub(crate) file: PathBuf,
    /// The hypervisors that it configures.
    pub(crate) hypervisors: Vec<String>,
    /// QEMU's settings.
    pub(crate) settings: Settings,
}

/// The directory and its drop-ins.
#[derive(Debug)]
pub(crate) struct Directory {
    /// Its path.
    pub(crate) path: PathBuf,
    /// Every configuration in it, used or not, by name.
    pub(crate) configurations: Vec<Configuration>,
    /// What is at the place of our drop-in.
    pub(crate) found: Found,
    /// Whether there is a directory for drop-ins.
    pub(crate) has_config_d: bool,
    /// Drop-ins after ours that set QEMU's path.
    pub(crate) later: Vec<PathBuf>,
    /// Drop-ins that are links.
    links: Vec<PathBuf>,
}

/// What the wrapper is to a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Use {
    /// All configurations are QEMU's, with this path.
    Qemu(PathBuf),
    /// The same, and the path is a wrapper's already, without our drop-in.
    ByHand(PathBuf),
    /// None is QEMU's.
    NotQemu,
}

impl Configuration {
    /// Whether it is QEMU's, and no other hypervisor's as well.
    pub(crate) fn is_qemu(&self) -> bool {
        self.hypervisors == [QEMU]
    }
}

impl Directory {
    /// Reads the configurations in `path` and their drop-ins.
    ///
    /// # Errors
    /// One of them cannot be read: what a drop-in would change is not known.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let entries =
            |path: &Path| sorted_entries(path).map_err(|e| Error::system("open", path, e));
        let config_d = path.join("config.d");
        let own = config_d.join(drop_in::NAME);
        let (mut drop_ins, mut later, mut links) = (Vec::new(), Vec::new(), Vec::new());
        for file in entries(&config_d)? {
            if file == own {
                continue;
            }
            let document = read(&file)?;
            if file.is_symlink() {
                links.push(file.clone());
            }
            if file > own && sets_path(&document) {
                later.push(file.clone());
            }
            drop_ins.push((file, document));
        }
        let mut configurations = Vec::new();
        for file in entries(path)? {
            // A link leads to a configuration whose drop-ins are beside its file.
            let is_file = file.symlink_metadata().is_ok_and(|status| status.is_file());
            if !is_file || file.extension().is_none_or(|extension| extension != "toml") {
                continue;
            }
            let base = read(&file)?;
            if hypervisors(&base).next().is_none() {
                continue;
            }
            let (mut names, mut settings) = (Vec::new(), Settings::default());
            let all = drop_ins.iter().map(|(file, document)| (file, document));
            for (file, document) in std::iter::once((&file, &base)).chain(all) {
                for name in hypervisors(document) {
                    if !names.contains(&name) {
                        names.push(name);
                    }
                }
                settings.update(document, file);
            }
            configurations.push(Configuration { file, hypervisors: names, settings });
        }
        let found = drop_in::find(&own);
        let has_config_d = config_d.exists();
        Ok(Self { path: path.to_owned(), configurations, found, has_config_d, later, links })
    }

    /// The path that Kata starts for a configuration, with our drop-in.
    pub(crate) fn started(&self, configuration: &Configuration) -> Option<PathBuf> {
        match &self.found {
            Found::Ours(drop_in) if self.later.is_empty() => Some(drop_in.wrapper.clone()),
            _ => configuration.settings.path.as_ref().map(PathBuf::from),
        }
    }

    /// The place of our drop-in.
    pub(crate) fn drop_in(&self) -> PathBuf {
        self.config_d().join(drop_in::NAME)
    }

    /// The directory for drop-ins.
    pub(crate) fn config_d(&self) -> PathBuf {
        self.path.join("config.d")
    }

    /// Checks what the Rust runtime demands of drop-ins and the Go runtime does not: it starts no
    /// pod with one that is a link (4.1.0, whose message says the contrary).
    ///
    /// # Errors
    /// A drop-in is a link.
    pub(crate) fn check_for_rust(&self) -> Result<(), Error> {
        let Some(file) = self.links.first().cloned() else { return Ok(()) };
        let why = "it is a link, with which the Rust runtime starts no pod".to_owned();
        Err(Error::ConfigurationUnreadable { file, why })
    }

    /// What a drop-in for the wrapper would change. `name_of` returns the names of the runtime
    /// classes that use a configuration.
    ///
    /// # Errors
    /// It would change a configuration that is not QEMU's, or one with another path; the path is
    /// not known; or another drop-in overrides it or has its name.
    pub(crate) fn use_of(&self, name_of: impl Fn(&Path) -> String) -> Result<Use, Error> {
        if !self.configurations.iter().any(|one| one.hypervisors.iter().any(|name| name == QEMU)) {
            return Ok(Use::NotQemu);
        }
        if let Found::Foreign(why) = &self.found {
            return Err(Error::ForeignDropIn { file: self.drop_in(), why: why.clone() });
        }
        let others = self.configurations.iter().filter(|one| !one.is_qemu());
        let mut changes: Vec<_> = others.map(|one| (one, one.hypervisors.join(" and "))).collect();
        let qemu: Vec<_> = self.configurations.iter().filter(|one| one.is_qemu()).collect();
        let first = qemu.first().and_then(|one| one.settings.path.clone());
        if qemu.iter().any(|one| one.settings.path != first) {
            let path = |one: &Configuration| {
                one.settings.path.clone().unwrap_or_else(|| "no path".to_owned())
            };
            changes.extend(qemu.iter().map(|one| (*one, path(one))));
        }
        if !changes.is_empty() {
            let changes = labels(&changes, name_of);
            return Err(Error::MixedConfigurations { directory: self.path.clone(), changes });
        }
        if let Some(file) = self.later.first() {
            return Err(Error::LaterDropIn { file: file.clone() });
        }
        let path = PathBuf::from(first.unwrap_or_default());
        if !path.is_absolute() || path.as_os_str().as_encoded_bytes().contains(&b'\n') {
            let file = qemu.first().map_or_else(|| self.path.clone(), |one| one.file.clone());
            return Err(Error::NoQemuPath { file });
        }
        match is_wrapper(&path) {
            true => Ok(Use::ByHand(path)),
            false => Ok(Use::Qemu(path)),
        }
    }
}

/// Names configurations by the runtime classes that use them. Those that none uses come last, as
/// one item: a release of Kata has a dozen in one directory.
fn labels(changes: &[(&Configuration, String)], name_of: impl Fn(&Path) -> String) -> Vec<String> {
    let (mut used, mut unused) = (Vec::new(), Vec::new());
    for (one, what) in changes {
        let file = one.file.file_name().unwrap_or_default().to_string_lossy();
        match name_of(&one.file) {
            name if name.is_empty() => unused.push((file, what)),
            name => used.push(format!("{name} ({file}: {what})")),
        }
    }
    used.extend(match &unused[..] {
        [] => None,
        [(file, what)] => Some(format!("{file} ({what}; no runtime class uses it)")),
        [(file, what), others @ ..] => {
            let count = others.len();
            Some(format!("{file} ({what}) and {count} more, which no runtime class uses"))
        }
    });
    used
}

/// Whether `path` is that of a wrapper or of a link to one. A wrapper must never be recorded as
/// QEMU.
pub(crate) fn is_wrapper(path: &Path) -> bool {
    let real = std::fs::canonicalize(path).unwrap_or_default();
    [path, &real].iter().any(|path| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(WRAPPER.as_bytes()))
    })
}

/// Reads a configuration or a drop-in. The runtimes do not start a pod with one that they cannot
/// read.
fn read(file: &Path) -> Result<DocumentMut, Error> {
    let document = read_toml(file).and_then(|document| document.ok_or("it is gone".to_owned()));
    document.map_err(|why| Error::ConfigurationUnreadable { file: file.to_owned(), why })
}

fn hypervisors(document: &DocumentMut) -> impl Iterator<Item = String> {
    let tables = document.get("hypervisor").and_then(Item::as_table_like);
    tables.into_iter().flat_map(|tables| tables.iter()).map(|(name, _)| name.to_owned())
}

fn sets_path(document: &DocumentMut) -> bool {
    let qemu = document.get("hypervisor").and_then(|tables| tables.get(QEMU));
    qemu.and_then(|qemu| qemu.get("path")).is_some_and(Item::is_str)
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
