//! Errors of building an image.

use std::{
    io,
    path::{Path, PathBuf},
};

/// An error of this library.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An I/O error of a file or directory of the host.
    #[error("{}: {source}", path.display())]
    Path {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A directory with no kernel or several, where one was expected.
    #[error("{} holds {found} kernels (boot/vmlinuz-*, usr/lib/modules/*/vmlinuz), expected one: unpack a kernel package there with dpkg -x", path.display())]
    Kernel {
        /// The directory of the unpacked package.
        path: PathBuf,
        /// How many were found.
        found: usize,
    },
    /// A file that is not an x86 kernel image.
    #[error("{}: not an x86 kernel image: {what}", path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A corrupt payload, or an unsupported compression.
    #[error("{}: cannot decompress: {what}", path.display())]
    Decompress {
        /// The file.
        path: PathBuf,
        /// The cause.
        what: String,
    },
    /// A missing module: neither a file nor built in.
    #[error("kernel {release} has no module {module}, neither as a file nor built in")]
    NoModule {
        /// The kernel.
        release: String,
        /// The module.
        module: String,
    },
    /// Modules that depend on each other in a cycle.
    #[error("module {0} depends on itself")]
    ModuleLoop(String),
    /// A file that is not an ELF file.
    #[error("{}: {source}", path.display())]
    Elf {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: goblin::error::Error,
    },
    /// A shared library that is in none of the searched directories.
    #[error("{} needs {library}, which is in none of {searched}", path.display())]
    NoLibrary {
        /// The file that needs it.
        path: PathBuf,
        /// The library's name.
        library: String,
        /// The searched directories.
        searched: String,
    },
    /// A program for the guest that needs shared libraries.
    #[error("{} is not a static program: build it with -C target-feature=+crt-static", .0.display())]
    NotStatic(PathBuf),
    /// A file whose size does not fit into the archive's 32 bits.
    #[error("{0} is too large for the archive")]
    TooLarge(String),
}

/// Adds the path to an I/O error: `fs::read(path).map_err(at(path))`.
pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Path { path, source }
}
