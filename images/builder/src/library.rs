//! Finds the shared libraries of a program as
//! [`ld.so(8)`](https://man7.org/linux/man-pages/man8/ld.so.8.html) does, without running anything.
//! It reads the `NEEDED` entries of the dynamic section and searches the directories of `RPATH` and
//! `RUNPATH` (with `$ORIGIN`), unpacked packages, the directories of `/etc/ld.so.conf`, and the
//! system's directories.
//!
//! Libraries that a program opens itself (`dlopen(3)`: NSS, plug-ins) are in no table and are not
//! found.

use std::{
    collections::BTreeMap,
    fs,
    path::{Component, Path, PathBuf},
};

use goblin::elf::{Elf, Header};

use crate::{Error, error::at};

/// Debian's directories for libraries, in the order of ld.so. Its ld.so searches them without
/// `/etc/ld.so.cache`, which the guest does not have.
const DIRECTORIES: [&str; 4] =
    ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib", "/usr/lib"];

/// The guest's directory for libraries whose directory on this machine is only in the cache.
const FALLBACK: &str = "/usr/lib";

/// A program or a library: its path on this machine, and in the guest.
#[derive(Debug, Clone)]
struct Object {
    file: PathBuf,
    inside: PathBuf,
    /// The `RPATH` of the objects that need this one.
    inherited: Vec<SearchDirectory>,
}

/// A directory of a search path: on this machine, and in the guest.
type SearchDirectory = (PathBuf, PathBuf);

/// Returns the files that `program` needs to run at the guest path `inside`, without the program
/// itself: its interpreter, its libraries and their libraries. The map has the path in the guest
/// and the file on this machine, which is in one of `trees` (unpacked packages that are not
/// installed) or has the same path.
///
/// # Errors
/// A file is not an ELF file, or a library is missing.
pub fn needed_by(
    program: &Path,
    inside: &Path,
    trees: &[PathBuf],
) -> Result<BTreeMap<PathBuf, PathBuf>, Error> {
    let configured = configured(Path::new("/etc/ld.so.conf"));
    let mut found = BTreeMap::new();
    let mut open =
        vec![Object { file: program.to_owned(), inside: inside.to_owned(), inherited: Vec::new() }];
    while let Some(object) = open.pop() {
        let contents = fs::read(&object.file).map_err(at(&object.file))?;
        let elf = Elf::parse(&contents)
            .map_err(|source| Error::Elf { path: object.file.clone(), source })?;
        if let Some(interpreter) = elf.interpreter {
            let path = PathBuf::from(interpreter);
            let file = trees.iter().map(|tree| in_tree(tree, &path)).find(|file| file.exists());
            found.insert(path.clone(), file.unwrap_or(path));
        }
        let (first, rpath) = own_directories(&object, &elf);
        for library in &elf.libraries {
            let directories = first.iter().cloned().chain(system(trees, &configured));
            let (inside, file) = find(&object.file, &elf.header, library, directories)?;
            if found.insert(inside.clone(), file.clone()).is_none() {
                open.push(Object { file, inside, inherited: rpath.clone() });
            }
        }
    }
    Ok(found)
}

/// Whether `program` runs without any other file.
///
/// # Errors
/// The file cannot be read or is not an ELF file.
pub fn is_static(program: &Path) -> Result<bool, Error> {
    let contents = fs::read(program).map_err(at(program))?;
    let elf =
        Elf::parse(&contents).map_err(|source| Error::Elf { path: program.to_owned(), source })?;
    Ok(elf.interpreter.is_none() && elf.libraries.is_empty())
}

/// Returns the directories that the object itself names, which precede the system's directories,
/// and the part of them that its libraries inherit.
fn own_directories(object: &Object, elf: &Elf<'_>) -> (Vec<SearchDirectory>, Vec<SearchDirectory>) {
    let expanded = |lists: &[&str]| {
        let directories =
            lists.iter().flat_map(|list| list.split(':')).filter(|path| !path.is_empty());
        directories.map(|path| expand(object, path)).collect::<Vec<_>>()
    };
    // A RUNPATH disables every RPATH, and applies only to its own object.
    if !elf.runpaths.is_empty() {
        return (expanded(&elf.runpaths), object.inherited.clone());
    }
    let mut rpath = expanded(&elf.rpaths);
    rpath.extend(object.inherited.iter().cloned());
    (rpath.clone(), rpath)
}

/// Expands `$ORIGIN` in a directory of a search path to the object's directory: on this machine,
/// and in the guest.
fn expand(object: &Object, path: &str) -> SearchDirectory {
    let with_origin_of = |at: &Path| {
        let origin = at.parent().unwrap_or(Path::new("/")).to_string_lossy();
        PathBuf::from(path.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin))
    };
    (with_origin_of(&object.file), without_dots(&with_origin_of(&object.inside)))
}

/// Resolves `.` and `..`: `/usr/bin/../lib` becomes `/usr/lib`, as a path in the archive must be.
fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}

/// Returns the system's directories: first those in the trees, then those of this machine, the
/// configured ones before the built-in ones.
fn system(trees: &[PathBuf], configured: &[PathBuf]) -> impl Iterator<Item = SearchDirectory> {
    let built_in = || DIRECTORIES.iter().map(PathBuf::from);
    let in_trees =
        trees.iter().flat_map(move |tree| built_in().map(|path| (in_tree(tree, &path), path)));
    let is_built_in =
        |path: &PathBuf| DIRECTORIES.iter().any(|directory| Path::new(directory) == path);
    let configured = configured.iter().map(move |path| {
        let inside = if is_built_in(path) { path.clone() } else { PathBuf::from(FALLBACK) };
        (path.clone(), inside)
    });
    in_trees.chain(configured).chain(built_in().map(|path| (path.clone(), path)))
}

/// Joins without the leading slash: `join` would replace `tree` by an absolute path.
fn in_tree(tree: &Path, path: &Path) -> PathBuf {
    tree.join(path.strip_prefix("/").unwrap_or(path))
}

/// Finds the first library of that name for the same architecture: its path in the guest, and its
/// file.
fn find(
    path: &Path,
    header: &Header,
    library: &str,
    directories: impl Iterator<Item = SearchDirectory>,
) -> Result<(PathBuf, PathBuf), Error> {
    let mut searched = Vec::new();
    for (directory, inside) in directories {
        let file = directory.join(library);
        if is_for(&file, header) {
            return Ok((inside.join(library), file));
        }
        if !searched.contains(&directory) {
            searched.push(directory);
        }
    }
    let searched: Vec<_> =
        searched.iter().map(|directory| directory.display().to_string()).collect();
    Err(Error::NoLibrary {
        path: path.to_owned(),
        library: library.to_owned(),
        searched: searched.join(", "),
    })
}

fn is_for(file: &Path, header: &Header) -> bool {
    let Ok(contents) = fs::read(file) else { return false };
    let found = Elf::parse_header(&contents);
    found.is_ok_and(|found| {
        (found.e_machine, found.e_ident[goblin::elf::header::EI_CLASS])
            == (header.e_machine, header.e_ident[goblin::elf::header::EI_CLASS])
    })
}

/// Returns the directories that `ldconfig(8)` would put into the cache, in their order.
fn configured(file: &Path) -> Vec<PathBuf> {
    let mut directories = Vec::new();
    for line in fs::read_to_string(file).unwrap_or_default().lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        match line.strip_prefix("include") {
            Some(pattern) => {
                included(Path::new(pattern.trim()))
                    .iter()
                    .for_each(|file| directories.extend(configured(file)));
            }
            None if line.starts_with('/') => directories.push(PathBuf::from(line)),
            None => {}
        }
    }
    directories
}

/// Expands a pattern such as `/etc/ld.so.conf.d/*.conf`; a name without a star is returned as it
/// is.
fn included(pattern: &Path) -> Vec<PathBuf> {
    let name = pattern.file_name().unwrap_or_default().to_string_lossy();
    let Some((begin, end)) = name.split_once('*') else { return vec![pattern.to_owned()] };
    let entries = pattern.parent().and_then(|parent| fs::read_dir(parent).ok());
    let mut files: Vec<_> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with(begin) && name.ends_with(end)
        })
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> (PathBuf, Vec<u8>) {
        let own = std::env::current_exe().unwrap();
        let contents = fs::read(&own).unwrap();
        (own, contents)
    }

    #[test]
    fn a_dynamic_program_needs_its_interpreter_and_the_c_library() {
        let (own, _) = own();
        let names: Vec<_> = needed_by(&own, Path::new("/usr/bin/agent"), &[])
            .unwrap()
            .keys()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert!(names.iter().any(|name| name == "libc.so.6"), "{names:?}");
        assert!(names.iter().any(|name| name.starts_with("ld-linux")), "{names:?}");
        assert!(!is_static(&own).unwrap());
    }

    #[test]
    fn a_missing_library_is_named_with_the_program_and_the_searched_directories() {
        let (own, contents) = own();
        let header = Elf::parse_header(&contents).unwrap();
        let error =
            find(&own, &header, "libnowhere.so.9", system(&[], &[])).unwrap_err().to_string();
        assert!(error.contains("needs libnowhere.so.9, which is in none of /lib/"), "{error}");
    }

    #[test]
    fn an_unpacked_package_takes_precedence_and_files_that_are_no_library_are_skipped() {
        let (own, contents) = own();
        let header = Elf::parse_header(&contents).unwrap();
        let tree = tempfile::tempdir().unwrap();
        let libraries = tree.path().join("usr/lib/x86_64-linux-gnu");
        fs::create_dir_all(&libraries).unwrap();
        let trees = [tree.path().to_owned()];
        let find = || find(&own, &header, "libc.so.6", system(&trees, &[])).unwrap();
        fs::write(libraries.join("libc.so.6"), "/* a script of the linker */").unwrap();
        assert!(!find().1.starts_with(tree.path()));
        fs::copy(&own, libraries.join("libc.so.6")).unwrap();
        let (inside, file) = find();
        assert_eq!(inside, Path::new("/usr/lib/x86_64-linux-gnu/libc.so.6"));
        assert_eq!(file, libraries.join("libc.so.6"));
    }

    #[test]
    fn the_origin_is_the_objects_directory_on_this_machine_and_in_the_guest() {
        let object = Object {
            file: "/build/out/agent".into(),
            inside: "/usr/bin/agent".into(),
            inherited: Vec::new(),
        };
        let (here, inside) = expand(&object, "$ORIGIN/../lib");
        assert_eq!((here, inside), ("/build/out/../lib".into(), "/usr/lib".into()));
        assert_eq!(expand(&object, "/opt/lib"), ("/opt/lib".into(), "/opt/lib".into()));
    }

    #[test]
    fn configured_directories_come_from_included_files_too() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("b.conf"), "# comment\n/opt/b\n").unwrap();
        fs::write(path("a.conf"), "/opt/a # ours\n").unwrap();
        fs::write(path("a.txt"), "/opt/never\n").unwrap();
        fs::write(
            path("main"),
            format!("include {}/*.conf\n/opt/last\n", directory.path().display()),
        )
        .unwrap();
        assert_eq!(configured(&path("main")), ["/opt/a", "/opt/b", "/opt/last"].map(PathBuf::from));
        let inside: Vec<_> = system(&[], &["/opt/a".into()]).map(|(_, inside)| inside).collect();
        assert_eq!(inside[0], Path::new("/usr/lib"), "the guest has no cache");
    }
}
