//! What the runtime classes of this node have now, directory by directory.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use super::Selection;
use crate::{
    Error,
    kata::node::{
        directory::{Directory, Use},
        drop_in::{self, DropIn, Found},
        runtime_class::{self, Runtime, RuntimeClass},
    },
    output::node_report::{ClassState, ReportedClass, ReportedRuntime},
    path_text::encode,
};

/// A directory that could be read, and what a drop-in would change in it.
#[derive(Debug)]
pub(super) struct Examined {
    pub(super) directory: Directory,
    pub(super) use_of: Result<Use, Error>,
}

/// The runtime classes, and the directories of their configurations.
#[derive(Debug)]
pub(super) struct Configured {
    pub(super) classes: Vec<RuntimeClass>,
    /// The directories of all classes, whether or not they are selected.
    pub(super) directories: BTreeMap<PathBuf, Result<Examined, Error>>,
    /// The directories of the classes that are selected.
    pub(super) selected: BTreeSet<PathBuf>,
}

impl Configured {
    /// Reads everything below `root`.
    ///
    /// # Errors
    /// A file of containerd or CRI-O cannot be read, or a class that is named does not exist, or
    /// there is none.
    pub(super) fn read(root: &Path, selection: &Selection) -> Result<Self, Error> {
        let classes = runtime_class::all(root)?;
        // Those whose class is gone can still be disabled.
        let has_drop_in = |path: &PathBuf| {
            let file = path.join("config.d").join(drop_in::NAME);
            matches!(drop_in::find(&file), Found::Ours(_))
        };
        let mut left = runtime_class::usual_directories(root);
        left.retain(has_drop_in);
        if classes.is_empty() && left.is_empty() {
            return Err(Error::NoKataConfiguration { searched: runtime_class::searched(root) });
        }
        let wanted = &selection.runtime_class;
        if let Some(name) = wanted.iter().find(|name| classes.iter().all(|one| one.name != **name))
        {
            let mut found: Vec<_> = classes.iter().map(|class| class.name.clone()).collect();
            found.dedup();
            return Err(Error::RuntimeClassUnknown { name: name.clone(), found });
        }
        let directory_of = |class: &RuntimeClass| {
            class.configuration.as_deref().and_then(Path::parent).map(Path::to_owned)
        };
        let is_selected = |class: &&RuntimeClass| wanted.is_empty() || wanted.contains(&class.name);
        let mut selected: BTreeSet<_> =
            classes.iter().filter(is_selected).filter_map(directory_of).collect();
        let mut all: BTreeSet<_> = classes.iter().filter_map(directory_of).collect();
        if wanted.is_empty() {
            selected.extend(left.iter().cloned());
        }
        all.extend(left);
        let examined = |path: &PathBuf| {
            let directory = Directory::read(path)?;
            let is_rust = |class: &RuntimeClass| {
                class.runtime == Runtime::Rust && directory_of(class).as_ref() == Some(path)
            };
            let accepted = match classes.iter().any(is_rust) {
                true => directory.check_for_rust(),
                false => Ok(()),
            };
            let use_of = accepted
                .and_then(|()| directory.use_of(|file| runtime_class::names_of(&classes, file)));
            Ok(Examined { directory, use_of })
        };
        let directories = all.into_iter().map(|path| (path.clone(), examined(&path))).collect();
        Ok(Self { classes, directories, selected })
    }

    /// The first error of a directory that is selected.
    pub(super) fn take_error(&mut self) -> Option<Error> {
        let is_bad = |path: &&PathBuf| {
            let found = self.directories.get(*path);
            found.is_some_and(|one| one.as_ref().map_or(true, |one| one.use_of.is_err()))
        };
        let path = self.selected.iter().find(is_bad)?;
        self.directories.remove(path)?.and_then(|one| one.use_of).err()
    }

    /// The drop-ins of ours in all directories.
    pub(super) fn drop_ins(&self) -> impl Iterator<Item = (&PathBuf, &DropIn)> {
        let readable =
            self.directories.iter().filter_map(|(path, one)| Some((path, one.as_ref().ok()?)));
        readable.filter_map(|(path, one)| match &one.directory.found {
            Found::Ours(drop_in) => Some((path, drop_in)),
            Found::Nothing | Found::Foreign(_) => None,
        })
    }

    /// The rows of the report, for the classes in the directories that are selected and for those
    /// without a configuration.
    pub(super) fn rows(&self) -> Vec<ReportedClass> {
        self.classes.iter().filter_map(|class| self.row(class)).collect()
    }

    fn row(&self, class: &RuntimeClass) -> Option<ReportedClass> {
        let directory = class.configuration.as_deref().and_then(Path::parent);
        if directory.is_some_and(|path| !self.selected.contains(path)) {
            return None;
        }
        let note = class.note();
        let mut row = ReportedClass {
            name: class.name.clone(),
            runtime: match class.runtime {
                Runtime::Go => ReportedRuntime::Go,
                Runtime::Rust => ReportedRuntime::Rust,
            },
            configuration: class.configuration.as_ref().map(encode),
            hypervisor: String::new(),
            path: None,
            wrapper: None,
            state: ClassState::NoConfiguration,
            why: note.clone(),
        };
        let Some(file) = &class.configuration else {
            let why = match &class.named {
                Some(named) => format!("{} does not exist", encode(named)),
                None => "none of the places that the runtime looks in has one".to_owned(),
            };
            row.why = Some(std::iter::once(why).chain(note).collect::<Vec<_>>().join("; "));
            return Some(row);
        };
        let examined = match self.directories.get(directory?)? {
            Ok(examined) => examined,
            Err(e) => {
                row.state = ClassState::Refused;
                row.why = Some(e.message());
                return Some(row);
            }
        };
        let of_file = examined.directory.configurations.iter().find(|one| one.file == *file);
        row.hypervisor = of_file.map(|one| one.hypervisors.join(",")).unwrap_or_default();
        row.path = of_file.and_then(|one| one.settings.path.clone());
        let is_qemu = of_file.is_some_and(|one| one.hypervisors.iter().any(|name| name == "qemu"));
        let why = examined.use_of.as_ref().err().map(Error::message);
        let is_overridden = !examined.directory.later.is_empty();
        match (&examined.directory.found, &examined.use_of) {
            _ if !is_qemu => {
                row.state = ClassState::NotQemu;
                return Some(row);
            }
            // Overridden, the runtime starts what the later one says.
            (Found::Ours(drop_in), _) if !is_overridden => {
                row.state = ClassState::Enabled;
                row.wrapper = Some(encode(&drop_in.wrapper));
            }
            (_, Ok(Use::ByHand(wrapper))) => {
                row.state = ClassState::ByHand;
                row.wrapper = Some(encode(wrapper));
            }
            (_, Ok(_)) => row.state = ClassState::Disabled,
            (_, Err(_)) => row.state = ClassState::Refused,
        }
        row.why = Some(why.into_iter().chain(note).collect::<Vec<_>>().join("; "));
        row.why = row.why.filter(|why| !why.is_empty());
        Some(row)
    }
}
