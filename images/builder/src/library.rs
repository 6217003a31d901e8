//! The shared libraries of a program, by the rules of [`ld.so(8)`](https://man7.org/linux/man-pages/man8/ld.so.8.html) as far
//! as Debian's programs use them: the dynamic section's `NEEDED` entries, looked for in the system's directories.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use goblin::elf::Elf;

use crate::{Error, error::at};

/// Where Debian keeps libraries, in ld.so's order.
const DIRECTORIES: [&str; 4] = ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib", "/usr/lib"];

/// The files that `program` needs to run: its interpreter and its libraries with theirs, not the program itself. They keep their
/// paths in the guest.
///
/// # Errors
/// A file is no ELF file, or a library is missing.
pub fn needed_by(program: &Path) -> Result<BTreeSet<PathBuf>, Error> {
    let mut found = BTreeSet::new();
    let mut open = vec![program.to_owned()];
    while let Some(path) = open.pop() {
        let contents = fs::read(&path).map_err(at(&path))?;
        let elf = Elf::parse(&contents).map_err(|source| Error::Elf { path: path.clone(), source })?;
        let libraries = elf.libraries.iter().map(|library| find(&path, library));
        for needed in elf.interpreter.map(|path| Ok(PathBuf::from(path))).into_iter().chain(libraries) {
            let needed = needed?;
            if found.insert(needed.clone()) {
                open.push(needed);
            }
        }
    }
    Ok(found)
}

/// Whether `program` runs without any other file.
///
/// # Errors
/// It cannot be read or is no ELF file.
pub fn is_static(program: &Path) -> Result<bool, Error> {
    let contents = fs::read(program).map_err(at(program))?;
    let elf = Elf::parse(&contents).map_err(|source| Error::Elf { path: program.to_owned(), source })?;
    Ok(elf.interpreter.is_none() && elf.libraries.is_empty())
}

fn find(path: &Path, library: &str) -> Result<PathBuf, Error> {
    DIRECTORIES
        .iter()
        .map(|directory| Path::new(directory).join(library))
        .find(|path| path.exists())
        .ok_or_else(|| Error::NoLibrary {
            path: path.to_owned(),
            library: library.to_owned(),
            searched: DIRECTORIES.join(", "),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_needs_its_interpreter_and_the_c_library() {
        let own = std::env::current_exe().unwrap();
        let names: Vec<_> = needed_by(&own)
            .unwrap()
            .iter()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert!(names.iter().any(|name| name == "libc.so.6"), "{names:?}");
        assert!(names.iter().any(|name| name.starts_with("ld-linux")), "{names:?}");
        assert!(!is_static(&own).unwrap());
    }

    #[test]
    fn a_missing_library_is_named_with_who_needs_it() {
        let error = find(Path::new("/usr/bin/x"), "libnowhere.so.9").unwrap_err().to_string();
        assert!(error.starts_with("/usr/bin/x needs libnowhere.so.9, which is in none of /lib/"), "{error}");
    }
}
