//! Kernel modules, by
//! [`finit_module(2)`](https://man7.org/linux/man-pages/man2/finit_module.2.html).
//!
//! The image has `/etc/modules.list` with one `path [parameters]` per line, in the order in which
//! to load them. It has one such list for each module that is only loaded on demand,
//! `/etc/modules-on-demand/NAME`.

use std::{
    collections::HashSet,
    ffi::CString,
    fs::{self, File},
    io,
    path::Path,
};

use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
};

use crate::{
    command_line::CommandLine,
    error::{Error, at},
};

const LIST: &str = "/etc/modules.list";
const ON_DEMAND: &str = "/etc/modules-on-demand";
const ON_REQUEST: &str = "/etc/modules-on-request";
const MODPROBE: &str = "/proc/sys/kernel/modprobe";

/// Loads the modules of `guest.modules`, then the image's own list. The extra modules come first so
/// that a test can put another SCSI host before the virtio-scsi controller.
pub(crate) fn load(command_line: &CommandLine) -> Result<(), Error> {
    let mut loaded = HashSet::new();
    for module in command_line.extra_modules() {
        // The name becomes a file name: allow only the characters of a module name.
        let name = normalized(module);
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(Error::UnknownModule(module.to_owned()));
        }
        let list =
            fs::read_to_string(Path::new(ON_DEMAND).join(&name)).map_err(|error| {
                match error.kind() {
                    io::ErrorKind::NotFound => Error::UnknownModule(module.to_owned()),
                    _ => at(module)(error),
                }
            })?;
        load_list(&list, command_line, &mut loaded)?;
    }
    load_list(&fs::read_to_string(LIST).map_err(at(LIST))?, command_line, &mut loaded)
}

/// Makes this program the one that loads what the kernel asks for. A kernel without modules never
/// asks.
pub(crate) fn answer_requests() -> Result<(), Error> {
    match fs::write(MODPROBE, "/init") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written.map_err(at(MODPROBE)),
    }
}

/// Returns what the kernel asks for, if it has started this program for that:
/// `/init -q -- fs-xfs`.
pub(crate) fn requested(arguments: &[String]) -> Option<&str> {
    match arguments {
        [_, quiet, dashes, name] if quiet == "-q" && dashes == "--" => Some(name),
        _ => None,
    }
}

/// Loads a module that the kernel asks for, without parameters: the program's root is the kernel's,
/// where nothing is mounted. The kernel asks for much that the image does not have.
pub(crate) fn load_requested(name: &str) -> Result<(), Error> {
    let unknown = || Error::UnknownModule(name.to_owned());
    // The name becomes a file name.
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c)) {
        return Err(unknown());
    }
    let list = fs::read_to_string(Path::new(ON_REQUEST).join(name)).map_err(|_| unknown())?;
    for (path, _) in entries(&list) {
        let file = File::open(path).map_err(at(path))?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            // Loaded before, or at the same time.
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(refused(path, "", errno)),
        }
    }
    Ok(())
}

fn refused(path: &str, parameters: &str, errno: Errno) -> Error {
    let (path, parameters) = (path.to_owned(), parameters.to_owned());
    Error::Module { path, parameters, source: errno.into() }
}

fn load_list(
    list: &str,
    command_line: &CommandLine,
    loaded: &mut HashSet<String>,
) -> Result<(), Error> {
    for (path, own_parameters) in entries(list) {
        let name = module_name(path);
        if !loaded.insert(name.clone()) {
            continue;
        }
        let mut parameters = own_parameters.to_owned();
        let from_command_line = command_line.module_parameters(&name);
        if !parameters.is_empty() && !from_command_line.is_empty() {
            parameters.push(' ');
        }
        parameters.push_str(&from_command_line);
        let file = File::open(path).map_err(at(path))?;
        let text = CString::new(parameters.as_str()).map_err(|_| Error::NulByte)?;
        finit_module(&file, &text, ModuleInitFlags::empty())
            .map_err(|errno| refused(path, &parameters, errno))?;
    }
    Ok(())
}

/// Returns path and parameters of each line. Empty lines and lines that start with `#` are skipped.
fn entries(list: &str) -> impl Iterator<Item = (&str, &str)> {
    list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(
        |line| {
            let (path, parameters) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            (path, parameters.trim())
        },
    )
}

/// Returns `virtio_scsi` for `/lib/modules/…/virtio-scsi.ko`: the kernel writes module names with
/// underscores.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    normalized(file.split('.').next().unwrap_or(file))
}

fn normalized(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_gives_paths_with_their_parameters() {
        let list = "# comment\n/lib/a.ko\n\n  /lib/b-c.ko  x=1 y=2 \n";
        assert_eq!(
            entries(list).collect::<Vec<_>>(),
            [("/lib/a.ko", ""), ("/lib/b-c.ko", "x=1 y=2")]
        );
    }

    #[test]
    fn what_the_kernel_asks_for_is_the_last_argument() {
        let arguments = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(requested(&arguments("/init -q -- fs-xfs")), Some("fs-xfs"));
        // As PID 1 it has what the kernel does not understand of its command line.
        assert_eq!(requested(&arguments("/init splash")), None);
    }

    #[test]
    fn what_the_image_does_not_have_is_not_loaded() {
        for name in ["fs-nothing", "../etc/passwd", "block-major-8-0*"] {
            let error = load_requested(name).unwrap_err();
            assert!(matches!(error, Error::UnknownModule(_)), "{name}: {error}");
        }
    }

    #[test]
    fn a_module_is_named_by_its_file_with_underscores() {
        assert_eq!(module_name("/lib/modules/6.1/scsi/virtio-scsi.ko"), "virtio_scsi");
        assert_eq!(module_name("sd_mod.ko.xz"), "sd_mod");
    }
}
