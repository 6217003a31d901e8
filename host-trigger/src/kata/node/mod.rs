//! How Kata is configured on a node, as far as the wrapper `ecr-qemu` is concerned: the runtime
//! classes of containerd and CRI-O, the configuration of each, and the drop-in that lets Kata start
//! the wrapper in place of QEMU.
//!
//! | file | knows |
//! |---|---|
//! | `runtime_class` | which runtime classes are Kata's, and where the configuration of each is |
//! | `shim_script` | what a shim that is a script sets |
//! | `directory` | the configurations in one directory, and the drop-ins that change all of them |
//! | `settings` | what a configuration says of QEMU's monitor and controller |
//! | `judgement` | what keeps new sandboxes of a runtime class from taking volumes |
//! | `drop_in` | the text of the drop-in, and what else was made with it |
//! | `record` | which QEMU a wrapper becomes |

pub(crate) mod directory;
pub(crate) mod drop_in;
pub(crate) mod judgement;
pub(crate) mod record;
pub(crate) mod runtime_class;
pub(crate) mod settings;
mod shim_script;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use toml_edit::DocumentMut;

/// `path`, which is absolute, below `root`.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Reads a file of TOML; `None` if it does not exist.
///
/// # Errors
/// It cannot be read, or is not valid. The text names no file.
fn read_toml(file: &Path) -> Result<Option<DocumentMut>, String> {
    let text = match fs::read(file) {
        Ok(text) => text,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(e) => return Err(e.to_string()),
    };
    let document = str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
    document.map(Some).ok_or_else(|| "it is not valid TOML".to_owned())
}

/// Returns the entries of `directory` in the order of their names' bytes; none if it does not
/// exist.
fn sorted_entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        entries => entries?,
    };
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>()?;
    paths.sort_unstable();
    Ok(paths)
}
