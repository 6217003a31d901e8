//! The kernel modules of an unpacked package, their dependencies, and the order in which to load
//! them.
//!
//! A module is an ELF file, possibly compressed with xz or zstd. Its section `.modinfo` holds
//! `key=value` strings; `depends` lists the modules that have to be loaded before, `alias` gives
//! another name. The kernel writes names with underscores; file names have underscores or hyphens
//! ([`modinfo`](https://man7.org/linux/man-pages/man8/modinfo.8.html)).

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use goblin::elf::Elf;

use crate::{
    Error,
    error::at,
    kernel::{xz, zstd},
};

/// The supported compressions: the suffix after `.ko`, and the function that decompresses.
const COMPRESSIONS: [(&str, Decompress); 2] = [(".xz", xz), (".zst", zstd)];
type Decompress = fn(&[u8]) -> Result<Vec<u8>, String>;

/// A module that is ready to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// The name, with underscores.
    pub name: String,
    /// The path below `/lib/modules/RELEASE`, without a suffix for compression:
    /// `kernel/drivers/scsi/sd_mod.ko`.
    pub path: String,
    /// The decompressed module.
    pub contents: Vec<u8>,
    /// The names by which the kernel asks for it beside its own: `fs-xfs`.
    pub aliases: Vec<String>,
}

/// The modules of one kernel.
#[derive(Debug)]
pub struct Modules {
    release: String,
    root: PathBuf,
    files: HashMap<String, PathBuf>,
    built_in: HashSet<String>,
}

impl Modules {
    /// Lists the modules of the kernel `release` in `directory`, without reading them.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn of(release: &str, directory: &Path) -> Result<Self, Error> {
        let mut files = HashMap::new();
        collect(&directory.join("kernel"), &mut files)?;
        let list = directory.join("modules.builtin");
        let built_in = fs::read_to_string(&list).map_err(at(&list))?;
        Ok(Self {
            release: release.to_owned(),
            root: directory.to_owned(),
            files,
            built_in: built_in.lines().map(|line| name_of(Path::new(line))).collect(),
        })
    }

    /// Whether the kernel has the module, as a file or built in.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        let name = normalized(name);
        self.files.contains_key(&name) || self.built_in.contains(&name)
    }

    /// Returns the modules `wanted` and all of their dependencies, each after those that it depends
    /// on. Built-in modules are left out.
    ///
    /// # Errors
    /// A module does not exist, cannot be read, or depends on itself.
    pub fn in_load_order(&self, wanted: &[&str]) -> Result<Vec<Module>, Error> {
        let mut order =
            Order { modules: self, done: HashSet::new(), open: HashSet::new(), list: Vec::new() };
        for name in wanted {
            order.add(&normalized(name))?;
        }
        Ok(order.list)
    }

    fn read(&self, name: &str, path: &Path) -> Result<Module, Error> {
        let mut contents = fs::read(path).map_err(at(path))?;
        let mut inside =
            path.strip_prefix(&self.root).unwrap_or(path).to_string_lossy().into_owned();
        for (suffix, decompress) in COMPRESSIONS {
            if let Some(plain) = inside.strip_suffix(suffix) {
                contents = decompress(&contents)
                    .map_err(|what| Error::Decompress { path: path.to_owned(), what })?;
                inside = plain.to_owned();
            }
        }
        Ok(Module { name: name.to_owned(), path: inside, contents, aliases: Vec::new() })
    }
}

/// A depth-first walk that lists a module after its dependencies.
struct Order<'a> {
    modules: &'a Modules,
    done: HashSet<String>,
    /// The path from a wanted module to the current position of the walk.
    open: HashSet<String>,
    list: Vec<Module>,
}

impl Order<'_> {
    fn add(&mut self, name: &str) -> Result<(), Error> {
        if self.done.contains(name) || self.modules.built_in.contains(name) {
            return Ok(());
        }
        if !self.open.insert(name.to_owned()) {
            return Err(Error::ModuleLoop(name.to_owned()));
        }
        let Some(path) = self.modules.files.get(name) else {
            return Err(Error::NoModule {
                release: self.modules.release.clone(),
                module: name.to_owned(),
            });
        };
        let mut module = self.modules.read(name, path)?;
        let elf = Elf::parse(&module.contents)
            .map_err(|source| Error::Elf { path: path.clone(), source })?;
        let modinfo = modinfo(&elf, &module.contents);
        module.aliases = values(modinfo, "alias").map(str::to_owned).collect();
        for dependency in depends(modinfo) {
            self.add(&dependency)?;
        }
        self.open.remove(name);
        self.done.insert(name.to_owned());
        self.list.push(module);
        Ok(())
    }
}

fn modinfo<'a>(elf: &Elf<'_>, contents: &'a [u8]) -> &'a [u8] {
    elf.section_headers
        .iter()
        .find(|section| elf.shdr_strtab.get_at(section.sh_name) == Some(".modinfo"))
        .and_then(|section| contents.get(section.file_range()?))
        .unwrap_or_default()
}

/// Returns the names in `depends=a,b`, with underscores.
fn depends(modinfo: &[u8]) -> Vec<String> {
    values(modinfo, "depends")
        .flat_map(|names| names.split(','))
        .filter(|name| !name.is_empty())
        .map(normalized)
        .collect()
}

/// Returns the values of a key, which may be repeated.
fn values<'a>(modinfo: &'a [u8], key: &str) -> impl Iterator<Item = &'a str> {
    modinfo
        .split(|&byte| byte == 0)
        .filter_map(move |string| str::from_utf8(string).ok()?.strip_prefix(key)?.strip_prefix('='))
}

fn collect(directory: &Path, files: &mut HashMap<String, PathBuf>) -> Result<(), Error> {
    for entry in fs::read_dir(directory).map_err(at(directory))? {
        let entry = entry.map_err(at(directory))?;
        let path = entry.path();
        if entry.file_type().map_err(at(&path))?.is_dir() {
            collect(&path, files)?;
        } else if is_module(&entry.file_name().to_string_lossy()) {
            files.insert(name_of(&path), path);
        }
    }
    Ok(())
}

/// Whether the file name is that of a module: `sd_mod.ko`, `sd_mod.ko.xz`. Modules with another
/// compression are ignored; the error names one if it is needed.
fn is_module(file: &str) -> bool {
    let suffixes = COMPRESSIONS.iter().map(|(suffix, _)| *suffix);
    suffixes
        .chain([""])
        .any(|suffix| file.strip_suffix(suffix).is_some_and(|plain| plain.ends_with(".ko")))
}

fn name_of(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    normalized(file.split('.').next().unwrap_or(&file))
}

fn normalized(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modinfo_with_underscores() {
        let modinfo = b"license=GPL\0depends=virtio,scsi-common\0name=x\0";
        assert_eq!(depends(modinfo), ["virtio", "scsi_common"]);
        assert_eq!(depends(b"depends=\0"), Vec::<String>::new());
        assert_eq!(depends(b""), Vec::<String>::new());
    }

    #[test]
    fn a_key_of_modinfo_can_be_repeated() {
        let modinfo = b"alias=fs-ext3\0aliases=x\0alias=fs-ext2\0alias";
        assert_eq!(values(modinfo, "alias").collect::<Vec<_>>(), ["fs-ext3", "fs-ext2"]);
    }

    #[test]
    fn a_modules_name_is_its_file_name_without_suffixes() {
        assert_eq!(name_of(Path::new("kernel/net/vmw_vsock/vmw-vsock.ko.xz")), "vmw_vsock");
        assert_eq!(name_of(Path::new("kernel/drivers/scsi/sd_mod.ko")), "sd_mod");
    }

    #[test]
    fn modules_are_recognized_by_their_suffix() {
        for (file, expected) in [
            ("virtio_scsi.ko", true),
            ("virtio_scsi.ko.xz", true),
            ("virtio_scsi.ko.zst", true),
            ("virtio_scsi.ko.br", false),
            ("virtio.xz", false),
        ] {
            assert_eq!(is_module(file), expected, "{file}");
        }
    }

    #[test]
    fn a_compressed_module_is_decompressed() {
        // printf 'a module' | zstd
        let stream = b"\x28\xb5\x2f\xfd\x04\x58\x41\0\0a module\x65\xaf\xab\xf2";
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("kernel")).unwrap();
        let path = root.path().join("kernel/m.ko.zst");
        fs::write(&path, stream).unwrap();
        let modules = Modules {
            release: "7.2".into(),
            root: root.path().to_owned(),
            files: HashMap::new(),
            built_in: HashSet::new(),
        };
        let module = modules.read("m", &path).unwrap();
        assert_eq!(
            (module.path.as_str(), module.contents.as_slice()),
            ("kernel/m.ko", &b"a module"[..])
        );
        fs::write(&path, &stream[..12]).unwrap();
        let error = modules.read("m", &path).unwrap_err().to_string();
        assert!(error.contains("m.ko.zst: cannot decompress"), "{error}");
    }

    #[test]
    fn a_module_that_does_not_exist_is_named_with_the_kernel() {
        let modules = Modules {
            release: "6.1".into(),
            root: PathBuf::new(),
            files: HashMap::new(),
            built_in: HashSet::from(["ext4".to_owned()]),
        };
        assert_eq!(modules.in_load_order(&["ext4"]).unwrap(), []);
        let error = modules.in_load_order(&["no-such"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "kernel 6.1 has no module no_such, neither as a file nor built in"
        );
    }
}
