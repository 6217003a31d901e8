//! The shared libraries of a program, by the rules of [`ld.so(8)`](https://man7.org/linux/man-pages/man8/ld.so.8.html) as far
//! as Debian's programs use them: the dynamic section's `NEEDED` entries, looked for in the directories of unpacked packages and
//! in the system's.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use goblin::elf::Elf;

use crate::{Error, error::at};

/// Where Debian keeps libraries, in ld.so's order.
const DIRECTORIES: [&str; 4] = ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib", "/usr/lib"];

/// The files that `program` needs to run: its interpreter and its libraries with theirs, not the program itself. Each path in the
/// guest, with the file on this machine: in one of `trees` (packages that were unpacked, not installed) or under the same path.
///
/// # Errors
/// A file is no ELF file, or a library is missing.
pub fn needed_by(program: &Path, trees: &[PathBuf]) -> Result<BTreeMap<PathBuf, PathBuf>, Error> {
    let mut found = BTreeMap::new();
    let mut open = vec![program.to_owned()];
    while let Some(path) = open.pop() {
        let contents = fs::read(&path).map_err(at(&path))?;
        let elf = Elf::parse(&contents).map_err(|source| Error::Elf { path: path.clone(), source })?;
        let libraries = elf.libraries.iter().map(|library| find(&path, library, trees));
        let interpreter = elf.interpreter.map(|path| Ok((PathBuf::from(path), PathBuf::from(path))));
        for needed in interpreter.into_iter().chain(libraries) {
            let (inside, file) = needed?;
            if found.insert(inside, file.clone()).is_none() {
                open.push(file);
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

fn find(path: &Path, library: &str, trees: &[PathBuf]) -> Result<(PathBuf, PathBuf), Error> {
    let inside = || DIRECTORIES.iter().map(|directory| Path::new(directory).join(library));
    // Every directory begins with a slash, which joining would take for a path of its own.
    let in_tree = |tree: &PathBuf, path: &Path| tree.join(path.strip_prefix("/").unwrap_or(path));
    let in_trees = trees.iter().flat_map(|tree| inside().map(move |path| (in_tree(tree, &path), path)));
    let here = inside().map(|path| (path.clone(), path));
    let found = in_trees.chain(here).find(|(file, _)| file.exists());
    found.map(|(file, inside)| (inside, file)).ok_or_else(|| Error::NoLibrary {
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
        let names: Vec<_> = needed_by(&own, &[])
            .unwrap()
            .keys()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert!(names.iter().any(|name| name == "libc.so.6"), "{names:?}");
        assert!(names.iter().any(|name| name.starts_with("ld-linux")), "{names:?}");
        assert!(!is_static(&own).unwrap());
    }

    #[test]
    fn a_missing_library_is_named_with_who_needs_it() {
        let error = find(Path::new("/usr/bin/x"), "libnowhere.so.9", &[]).unwrap_err().to_string();
        assert!(error.starts_with("/usr/bin/x needs libnowhere.so.9, which is in none of /lib/"), "{error}");
    }

    #[test]
    fn an_unpacked_package_comes_before_this_machine() {
        let tree = tempfile::tempdir().unwrap();
        let libraries = tree.path().join("usr/lib/x86_64-linux-gnu");
        fs::create_dir_all(&libraries).unwrap();
        fs::write(libraries.join("libc.so.6"), "").unwrap();
        let trees = [tree.path().to_owned()];
        let (inside, file) = find(Path::new("/usr/bin/x"), "libc.so.6", &trees).unwrap();
        assert_eq!(inside, Path::new("/usr/lib/x86_64-linux-gnu/libc.so.6"));
        assert_eq!(file, libraries.join("libc.so.6"));
    }
}
