//! `node disable`: everything is checked, then the drop-ins are removed, then what they need no
//! longer: the record of the wrapper and the directories that were made for them.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{Disable, configured::Configured};
use crate::{
    Error,
    host::config_file,
    kata::node::{
        directory::Use,
        drop_in::{DropIn, Found},
        record,
    },
    output::{
        envelope::{Envelope, Outcome},
        node_report::{Change, FileChange, NodeReport},
    },
    path_text::encode,
};

const NAME: &str = "node disable";

/// Something to remove.
#[derive(Debug)]
enum Step {
    File(PathBuf),
    /// If nothing else is in it by then.
    Directory(PathBuf),
}

pub(super) fn run(root: &Path, verb: &Disable) -> Result<Envelope<NodeReport>, Error> {
    let configured = Configured::read(root, &verb.selection)?;
    let runtime_classes = configured.rows();
    let mut report = NodeReport { runtime_classes, ..NodeReport::default() };
    let failed = |report: NodeReport, error: &Error| {
        Ok(Envelope::new(NAME, Outcome::Error, report).with_error(Some(error)))
    };
    let steps = match plan(root, &configured, verb.force) {
        Ok(steps) => steps,
        Err(error) => return failed(report, &error),
    };
    let outcome = if steps.is_empty() { Outcome::Unchanged } else { Outcome::Disabled };
    let removed = |path: &Path| FileChange { path: encode(path), change: Change::Removed };
    for step in &steps {
        let (path, done) = match step {
            Step::File(path) if verb.dry_run => (path, true),
            Step::Directory(path) if verb.dry_run => (path, true),
            Step::Directory(path) => (path, config_file::remove_directory_if_empty(path)),
            Step::File(path) => match config_file::remove(path) {
                Ok(()) => (path, true),
                Err(error) => return failed(report, &error),
            },
        };
        if done {
            report.files.push(removed(path));
        }
    }
    // What was done is done, also if a configuration has become unreadable meanwhile.
    if !verb.dry_run
        && let Ok(now) = Configured::read(root, &verb.selection)
    {
        report.runtime_classes = now.rows();
    }
    Ok(Envelope::new(NAME, outcome, report))
}

/// Checks everything; returns what is to be removed, in this order.
fn plan(root: &Path, configured: &Configured, force: bool) -> Result<Vec<Step>, Error> {
    let mut steps = Vec::new();
    let mut removed: Vec<(&Path, &DropIn, Option<&Path>)> = Vec::new();
    let mut is_forced = false;
    for path in &configured.selected {
        let Some(Ok(examined)) = configured.directories.get(path) else { continue };
        let file = examined.directory.drop_in();
        match &examined.directory.found {
            Found::Nothing => continue,
            Found::Foreign(why) if !force => {
                return Err(Error::ForeignDropIn { file, why: why.clone() });
            }
            Found::Foreign(_) => is_forced = true,
            Found::Ours(drop_in) => {
                let qemu = match &examined.use_of {
                    Ok(Use::Qemu(qemu)) => Some(&**qemu),
                    _ => None,
                };
                removed.push((path, drop_in, qemu));
            }
        }
        config_file::check_trusted(&examined.directory.config_d())?;
        steps.push(Step::File(file));
        let is_ours = matches!(&examined.directory.found, Found::Ours(one) if one.made.config_d);
        if is_ours {
            steps.push(Step::Directory(examined.directory.config_d()));
        }
    }
    let kept: Vec<&DropIn> = configured
        .drop_ins()
        .filter(|(path, _)| !configured.selected.contains(*path))
        .map(|(_, drop_in)| drop_in)
        .collect();
    // The record that an edited drop-in needs is not known.
    let wrappers: BTreeSet<_> = removed.iter().map(|(_, one, _)| &one.wrapper).collect();
    for wrapper in wrappers.into_iter().filter(|_| !is_forced) {
        let of_wrapper = || removed.iter().filter(|(_, one, _)| one.wrapper == *wrapper);
        let made = of_wrapper().any(|(_, one, _)| one.made.record);
        if !made || kept.iter().any(|one| one.wrapper == *wrapper) {
            continue;
        }
        let file = record::of(root, wrapper);
        // Another program has written one since.
        let recorded = record::read(&file)?;
        let is_as_made = |recorded: &Path| {
            of_wrapper().any(|(_, _, qemu)| qemu.is_none_or(|qemu| qemu == recorded))
        };
        if recorded.as_deref().is_some_and(is_as_made) {
            config_file::check_trusted(&record::directory(root))?;
            steps.push(Step::File(file));
        }
    }
    if kept.is_empty() && removed.iter().any(|(_, one, _)| one.made.records) {
        steps.push(Step::Directory(record::directory(root)));
    }
    Ok(steps)
}
