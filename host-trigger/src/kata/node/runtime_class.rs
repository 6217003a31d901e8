//! The runtime classes of a node that are Kata's, and the configuration of each.
//!
//! containerd has them below its CRI plugin ([config.toml, versions 1 to
//! 3](https://github.com/containerd/containerd/blob/main/docs/cri/config.md)), CRI-O below
//! `crio.runtime.runtimes`
//! ([crio.conf(5)](https://github.com/cri-o/cri-o/blob/main/docs/crio.conf.5.md)). One that names
//! no configuration uses the first that exists of Kata's own places.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    fs, io,
    path::{Path, PathBuf},
};

use toml_edit::{DocumentMut, Item};

use super::{
    below, read_toml,
    shim_script::{ShimScript, VARIABLE},
    sorted_entries,
};
use crate::Error;

/// Where containerd's configuration is: its own, and those of distributions of Kubernetes.
const CONTAINERD: [&str; 4] = [
    "/etc/containerd/config.toml",
    "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
    "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
    "/etc/k0s/containerd.toml",
];
/// containerd 2.2 imports it without being told.
const CONTAINERD_IMPORTS: &str = "/etc/containerd/conf.d/*.toml";
const CRIO: &str = "/etc/crio/crio.conf";
const CRIO_DROP_INS: &str = "/etc/crio/crio.conf.d";
/// The names of the CRI plugin in versions 1, 2 and 3 of containerd's configuration.
const PLUGINS: [&str; 3] = ["cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"];
/// Where the runtimes look for a configuration.
const DEFAULTS: [&str; 3] = [
    "/etc/kata-containers",
    "/usr/share/defaults/kata-containers",
    "/opt/kata/share/defaults/kata-containers",
];
/// Where shims are found.
const PROGRAMS: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/bin", "/opt/kata/bin"];
/// What the paths of the Rust runtime have in common.
const RUST: &str = "runtime-rs";

/// Kata's two runtimes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runtime {
    /// `src/runtime`.
    Go,
    /// `src/runtime-rs`.
    Rust,
}

/// What starts containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manager {
    /// containerd.
    Containerd,
    /// CRI-O.
    Crio,
}

/// A runtime class of Kata's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RuntimeClass {
    /// Its name, the handler of a Kubernetes RuntimeClass. Empty for a configuration of Kata's own
    /// places where no runtime class is found.
    pub(crate) name: String,
    /// Where it is defined.
    pub(crate) defined: Option<(Manager, PathBuf)>,
    /// Which runtime, as far as the names tell.
    pub(crate) runtime: Runtime,
    /// The configuration that it names.
    pub(crate) named: Option<PathBuf>,
    /// The configuration that it uses, without links; `None` if it does not exist.
    pub(crate) configuration: Option<PathBuf>,
    /// Its shim, if that is a script, which may set anything.
    pub(crate) script: Option<PathBuf>,
}

impl RuntimeClass {
    /// What cannot be known of its configuration.
    pub(crate) fn note(&self) -> Option<String> {
        match (&self.named, &self.script) {
            (Some(_), _) => None,
            (None, Some(script)) => Some(format!(
                "its shim is the script {script:?}: if that sets {VARIABLE}, another configuration \
                 is used"
            )),
            (None, None) => Some(format!(
                "it names no configuration: if its shim gets {VARIABLE} from the environment, \
                 another one is used"
            )),
        }
    }
}

/// The names of the classes that use a configuration.
pub(crate) fn names_of(classes: &[RuntimeClass], file: &Path) -> String {
    let uses = classes.iter().filter(|class| class.configuration.as_deref() == Some(file));
    let names = uses.map(|class| match class.name.as_str() {
        "" => "default",
        name => name,
    });
    names.collect::<Vec<_>>().join(" and ")
}

/// A runtime as a file defines it.
#[derive(Debug, Default)]
struct Defined {
    kind: String,
    shim: String,
    configuration: Option<String>,
    file: PathBuf,
}

impl Defined {
    /// Takes over what a later file says.
    fn update(
        &mut self,
        table: &Item,
        [kind, shim]: [&str; 2],
        configuration: Option<&Item>,
        file: &Path,
    ) {
        let text = |item: Option<&Item>| item.and_then(Item::as_str).map(str::to_owned);
        if let Some(kind) = text(table.get(kind)) {
            self.kind = kind;
        }
        if let Some(shim) = text(table.get(shim)) {
            self.shim = shim;
        }
        if let Some(path) = text(configuration) {
            self.configuration = Some(path).filter(|path| !path.is_empty());
        }
        file.clone_into(&mut self.file);
    }

    /// The shim's name, if it is Kata's.
    fn shim(&self, manager: Manager) -> Option<String> {
        let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        match manager {
            // "io.containerd.kata-qemu.v2" is the shim "containerd-shim-kata-qemu-v2".
            Manager::Containerd => {
                let shim = match self.kind.strip_prefix("io.containerd.") {
                    Some(kind) => format!("containerd-shim-{}", kind.replace('.', "-")),
                    None => name(&self.kind),
                };
                shim.starts_with("containerd-shim-kata").then_some(shim)
            }
            Manager::Crio => (self.kind == "vm").then(|| name(&self.shim)),
        }
    }
}

/// Finds the runtime classes of the node at `root`, by name. If there is none, the configurations
/// that the runtimes use by default.
///
/// # Errors
/// A file of containerd or CRI-O cannot be read.
pub(crate) fn all(root: &Path) -> Result<Vec<RuntimeClass>, Error> {
    let mut classes = Vec::new();
    for (manager, defined) in
        [(Manager::Containerd, containerd(root)?), (Manager::Crio, crio(root)?)]
    {
        for (name, defined) in defined {
            let Some(shim) = defined.shim(manager) else { continue };
            let program = match defined.shim.as_str() {
                "" => find_program(root, &shim),
                path => below(root, Path::new(path)),
            };
            let script = ShimScript::read(&program);
            let by_script = script.as_ref().and_then(ShimScript::configuration);
            let named = defined.configuration.as_deref().or(by_script);
            let named = named.map(|path| below(root, Path::new(path)));
            let runtime = match &script {
                Some(script) if script.names(RUST) => Runtime::Rust,
                _ => runtime_of(&program, named.as_deref(), &shim),
            };
            let script = script.is_some().then_some(program);
            let configuration = match &named {
                Some(path) => resolve(path)?,
                None => default_configuration(root, runtime)?,
            };
            let defined = Some((manager, defined.file));
            classes.push(RuntimeClass { name, defined, runtime, named, configuration, script });
        }
    }
    if classes.is_empty() {
        for runtime in [Runtime::Go, Runtime::Rust] {
            let configuration = default_configuration(root, runtime)?;
            if configuration.is_some() {
                let (name, defined, named, script) = (String::new(), None, None, None);
                classes.push(RuntimeClass { name, defined, runtime, named, configuration, script });
            }
        }
    }
    Ok(classes)
}

/// The files in which runtime classes and configurations are looked for, for a message.
pub(crate) fn searched(root: &Path) -> Vec<PathBuf> {
    let files = CONTAINERD.into_iter().take(1).chain([CRIO]).chain(DEFAULTS);
    files.map(|file| below(root, Path::new(file))).collect()
}

/// The directories with configurations below Kata's own places, also those that no runtime class
/// uses any longer.
pub(crate) fn usual_directories(root: &Path) -> Vec<PathBuf> {
    let places = DEFAULTS.iter().flat_map(|place| {
        let place = below(root, Path::new(place));
        [place.clone(), place.join(RUST)]
    });
    let with_runtimes = places.flat_map(|place| {
        let of_classes = ["", "runtimes", "custom-runtimes"]
            .iter()
            .flat_map(|name| sorted_entries(&place.join(name)).unwrap_or_default())
            .collect::<Vec<_>>();
        std::iter::once(place).chain(of_classes)
    });
    with_runtimes
        .filter_map(|path| fs::canonicalize(path).ok())
        .filter(|path| path.is_dir())
        .collect()
}

fn default_configuration(root: &Path, runtime: Runtime) -> Result<Option<PathBuf>, Error> {
    for directory in DEFAULTS {
        let mut directory = below(root, Path::new(directory));
        if runtime == Runtime::Rust {
            directory.push(RUST);
        }
        let found = resolve(&directory.join("configuration.toml"))?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Follows the links of a configuration, as both runtimes do: the drop-ins are beside the file that
/// they lead to.
fn resolve(path: &Path) -> Result<Option<PathBuf>, Error> {
    match fs::canonicalize(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(e) => Err(Error::system("realpath", path, e)),
    }
}

fn find_program(root: &Path, shim: &str) -> PathBuf {
    let programs = PROGRAMS.iter().map(|path| below(root, Path::new(path)).join(shim));
    programs.into_iter().find(|path| path.exists()).unwrap_or_default()
}

fn runtime_of(program: &Path, configuration: Option<&Path>, shim: &str) -> Runtime {
    let program = fs::canonicalize(program).unwrap_or_else(|_| program.to_owned());
    let is_rust = |path: &Path| path.to_string_lossy().contains(RUST);
    match is_rust(&program) || configuration.is_some_and(is_rust) || shim.contains(RUST) {
        true => Runtime::Rust,
        false => Runtime::Go,
    }
}

/// The runtimes of containerd. A file that is imported wins over the one that imports it.
fn containerd(root: &Path) -> Result<BTreeMap<String, Defined>, Error> {
    let mut runtimes: BTreeMap<String, Defined> = BTreeMap::new();
    let files = CONTAINERD.iter().map(|file| below(root, Path::new(file)));
    let imported = below(root, Path::new(CONTAINERD_IMPORTS));
    let mut files: VecDeque<_> = files.chain(matching(&imported)?).collect();
    let mut seen = HashSet::new();
    while let Some(file) = files.pop_front() {
        if !seen.insert(file.clone()) {
            continue;
        }
        let Some(document) = read(&file)? else { continue };
        for plugin in PLUGINS {
            let plugin = document.get("plugins").and_then(|plugins| plugins.get(plugin));
            let tables = plugin.and_then(|plugin| plugin.get("containerd")?.get("runtimes"));
            for (name, table) in
                tables.and_then(Item::as_table_like).into_iter().flat_map(|t| t.iter())
            {
                let options = table.get("options").and_then(|options| options.get("ConfigPath"));
                let keys = ["runtime_type", "runtime_path"];
                runtimes.entry(name.to_owned()).or_default().update(table, keys, options, &file);
            }
        }
        let imports = document.get("imports").and_then(Item::as_array);
        for import in imports.into_iter().flatten().filter_map(|value| value.as_str()) {
            let import = match import.starts_with('/') {
                true => below(root, Path::new(import)),
                false => file.with_file_name(import),
            };
            files.extend(matching(&import)?);
        }
    }
    Ok(runtimes)
}

/// The runtimes of CRI-O. CRI-O reads every file of the directory.
fn crio(root: &Path) -> Result<BTreeMap<String, Defined>, Error> {
    let mut runtimes: BTreeMap<String, Defined> = BTreeMap::new();
    let drop_ins = below(root, Path::new(CRIO_DROP_INS));
    let drop_ins = sorted_entries(&drop_ins).map_err(|e| Error::system("open", &drop_ins, e))?;
    for file in std::iter::once(below(root, Path::new(CRIO))).chain(drop_ins) {
        if file.is_dir() {
            continue;
        }
        let Some(document) = read(&file)? else { continue };
        let runtime = document.get("crio").and_then(|crio| crio.get("runtime"));
        let tables = runtime.and_then(|runtime| runtime.get("runtimes"));
        for (name, table) in tables.and_then(Item::as_table_like).into_iter().flat_map(|t| t.iter())
        {
            let path = table.get("runtime_config_path");
            let keys = ["runtime_type", "runtime_path"];
            runtimes.entry(name.to_owned()).or_default().update(table, keys, path, &file);
        }
    }
    Ok(runtimes)
}

fn read(file: &Path) -> Result<Option<DocumentMut>, Error> {
    read_toml(file).map_err(|why| Error::ConfigurationUnreadable { file: file.to_owned(), why })
}

/// The files that a pattern stands for, which may have `*` in its last component.
fn matching(pattern: &Path) -> Result<Vec<PathBuf>, Error> {
    let name = pattern.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if !name.contains('*') {
        return Ok(vec![pattern.to_owned()]);
    }
    let directory = pattern.parent().unwrap_or(pattern);
    let mut files = sorted_entries(directory).map_err(|e| Error::system("open", directory, e))?;
    files.retain(|file| {
        let file = file.file_name().unwrap_or_default();
        !file.as_encoded_bytes().starts_with(b".") && matches(&name, &file.to_string_lossy())
    });
    Ok(files)
}

/// Whether `name` is what `pattern` stands for.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => name.strip_prefix(head).is_some_and(|rest| {
            let ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
            ends.into_iter().any(|at| rest.get(at..).is_some_and(|rest| matches(tail, rest)))
        }),
    }
}

#[cfg(test)]
#[path = "runtime_class_tests.rs"]
mod tests;
