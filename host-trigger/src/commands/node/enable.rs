//! `node enable`: everything is checked, then the record is written, then the drop-ins. A failure
//! removes what was written.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use super::{Enable, configured::Configured, own_directory};
use crate::{
    Error,
    host::config_file,
    kata::node::{
        directory::{Directory, Use},
        drop_in::{self, DropIn, Found, Made},
        record,
    },
    output::{
        envelope::{Envelope, Outcome},
        node_report::{Change, FileChange, NodeReport},
    },
    path_text::encode,
};

const NAME: &str = "node enable";

/// Something to make.
#[derive(Debug)]
enum Step {
    Directory(PathBuf),
    /// A file, the directory in which it is written first, and its text.
    File(PathBuf, PathBuf, String),
}

impl Step {
    fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::File(path, ..) => path,
        }
    }
}

pub(super) fn run(root: &Path, verb: &Enable) -> Result<Envelope<NodeReport>, Error> {
    let mut configured = Configured::read(root, &verb.selection)?;
    let mut report = NodeReport { runtime_classes: configured.rows(), ..NodeReport::default() };
    let commands = own_directory::commands(&configured);
    let refused = |report: NodeReport, error: &Error| {
        Ok(Envelope::new(NAME, Outcome::Error, report).with_error(Some(error)))
    };
    let steps = match plan(root, &mut configured, verb.wrapper.as_deref()) {
        Ok(steps) => steps,
        Err(error) => {
            report.commands = commands;
            return refused(report, &error);
        }
    };
    let outcome = if steps.is_empty() { Outcome::Unchanged } else { Outcome::Enabled };
    if !verb.dry_run {
        if let Err(error) = execute(&steps) {
            return refused(report, &error);
        }
        // What was done is done, also if a configuration has become unreadable meanwhile.
        if let Ok(now) = Configured::read(root, &verb.selection) {
            report.runtime_classes = now.rows();
        }
    }
    let written = |step: &Step| FileChange { path: encode(step.path()), change: Change::Written };
    report.files = steps.iter().map(written).collect();
    Ok(Envelope::new(NAME, outcome, report))
}

/// Checks everything; returns what is to be made, in this order.
fn plan(
    root: &Path,
    configured: &mut Configured,
    wrapper: Option<&Path>,
) -> Result<Vec<Step>, Error> {
    if let Some(error) = configured.take_error() {
        return Err(error);
    }
    let configured = &*configured;
    let mut wanted: Vec<(&Directory, &Path)> = Vec::new();
    let mut is_qemu = false;
    for path in &configured.selected {
        let Some(Ok(examined)) = configured.directories.get(path) else { continue };
        match &examined.use_of {
            Ok(Use::NotQemu) | Err(_) => {}
            Ok(Use::ByHand(_)) => is_qemu = true,
            Ok(Use::Qemu(qemu)) => {
                is_qemu = true;
                wanted.push((&examined.directory, qemu));
            }
        }
    }
    if !is_qemu {
        let row = |row: crate::output::node_report::ReportedClass| match row.hypervisor.as_str() {
            "" => format!("{} (no configuration)", row.name),
            hypervisor => format!("{} ({hypervisor})", row.name),
        };
        let classes = configured.rows().into_iter().map(row).collect();
        return Err(Error::NoQemuClass { classes });
    }
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let wrapper = find_wrapper(wrapper)?;
    let record = record::of(root, &wrapper);
    let mut recorded = record::read(&record)?;
    let is_recorded = recorded.is_some();
    // Those that are not selected need it, too.
    for examined in configured.directories.values().filter_map(|one| one.as_ref().ok()) {
        let is_user =
            matches!(&examined.directory.found, Found::Ours(ours) if ours.wrapper == wrapper);
        let is_wanted = wanted.iter().any(|(one, _)| one.path == examined.directory.path);
        let Ok(Use::Qemu(qemu)) = &examined.use_of else { continue };
        if !is_user && !is_wanted {
            continue;
        }
        let recorded = recorded.get_or_insert_with(|| qemu.clone());
        if recorded != qemu {
            return Err(Error::OtherRecord {
                record,
                recorded: recorded.clone(),
                directory: examined.directory.path.clone(),
                path: qemu.clone(),
            });
        }
    }
    steps(root, configured, &wanted, &wrapper, (record, is_recorded))
}

fn steps(
    root: &Path,
    configured: &Configured,
    wanted: &[(&Directory, &Path)],
    wrapper: &Path,
    (record, is_recorded): (PathBuf, bool),
) -> Result<Vec<Step>, Error> {
    let mut steps = Vec::new();
    let records = record::directory(root);
    let has_records = records.exists();
    let existing = if has_records { Some(&*records) } else { records.parent() };
    if let Some(existing) = existing {
        config_file::check_trusted(existing)?;
    }
    if !is_recorded {
        if !has_records {
            steps.push(Step::Directory(records.clone()));
        }
        let qemu = wanted.first().map_or("".into(), |(_, qemu)| qemu.to_string_lossy());
        steps.push(Step::File(record, records, format!("{qemu}\n")));
    }
    // The last drop-in that is removed takes these with it, whichever was written first.
    let earlier = |made: fn(&Made) -> bool| {
        configured.drop_ins().any(|(_, one)| one.wrapper == wrapper && made(&one.made))
    };
    let made_record = !is_recorded || earlier(|made| made.record);
    let made_records = !has_records || configured.drop_ins().any(|(_, one)| one.made.records);
    for (directory, _) in wanted {
        match &directory.found {
            Found::Ours(ours) if ours.wrapper == wrapper => continue,
            Found::Ours(ours) => {
                let why = format!("it names {:?}; disable it first", ours.wrapper);
                return Err(Error::ForeignDropIn { file: directory.drop_in(), why });
            }
            Found::Nothing | Found::Foreign(_) => {}
        }
        config_file::check_trusted(&directory.path)?;
        if directory.has_config_d {
            config_file::check_trusted(&directory.config_d())?;
        } else {
            steps.push(Step::Directory(directory.config_d()));
        }
        let config_d = !directory.has_config_d;
        let made = Made { config_d, record: made_record, records: made_records };
        let text = DropIn { wrapper: wrapper.to_owned(), made }.text();
        // Not in config.d, of which the runtimes read every entry.
        steps.push(Step::File(directory.drop_in(), directory.path.clone(), text));
    }
    Ok(steps)
}

/// Takes all steps, or none.
fn execute(steps: &[Step]) -> Result<(), Error> {
    for (count, step) in steps.iter().enumerate() {
        let done = match step {
            Step::Directory(path) => config_file::create_directory(path),
            Step::File(path, beside, text) => config_file::create(path, beside, text),
        };
        if let Err(error) = done {
            let undo = |step: &Step| match step {
                Step::Directory(path) => {
                    let gone = config_file::remove_directory_if_empty(path);
                    (!gone).then(|| format!("{path:?} is left"))
                }
                Step::File(path, ..) => {
                    config_file::remove(path).err().map(|e| format!("{path:?} is left: {e}"))
                }
            };
            let left: Vec<_> = steps.iter().take(count).rev().filter_map(undo).collect();
            return Err(match left.is_empty() {
                true => error,
                false => Error::Incomplete { cause: Box::new(error), left },
            });
        }
    }
    Ok(())
}

/// The wrapper's file. Kata follows the links of its `path`, so the wrapper knows itself by the
/// name of this file.
fn find_wrapper(named: Option<&Path>) -> Result<PathBuf, Error> {
    let path = match named {
        Some(path) => path.to_owned(),
        None => {
            let own = std::env::current_exe()
                .map_err(|e| Error::system("readlink", "/proc/self/exe", e))?;
            own.with_file_name("ecr-qemu")
        }
    };
    let unusable = |why: String| Error::WrapperUnusable { path: path.clone(), why };
    let real = fs::canonicalize(&path).map_err(|e| unusable(e.to_string()))?;
    let status = fs::metadata(&real).map_err(|e| unusable(e.to_string()))?;
    if !status.is_file() || status.permissions().mode() & 0o111 == 0 {
        return Err(unusable("it is not a program".to_owned()));
    }
    let name = real.file_name().unwrap_or_default().as_encoded_bytes();
    if !name.starts_with(b"ecr-qemu") {
        return Err(unusable("the name of its file does not begin with ecr-qemu".to_owned()));
    }
    if !drop_in::is_plain(&real) {
        return Err(unusable("its path has characters that need escapes".to_owned()));
    }
    let is_closed = |path: &&Path| {
        fs::metadata(path).is_ok_and(|status| status.permissions().mode() & 0o001 == 0)
    };
    if let Some(closed) = real.ancestors().find(is_closed) {
        let why = format!(
            "{closed:?} has no execute permission for others, and the VMM may run as another user"
        );
        return Err(unusable(why));
    }
    config_file::check_trusted_file(&real)?;
    Ok(real)
}
