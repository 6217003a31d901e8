//! What a path is that should be a regular file, in words.

use std::{fs::FileType, os::unix::fs::FileTypeExt};

/// Returns the kind with its article.
pub(super) fn name(kind: FileType) -> &'static str {
    match () {
        () if kind.is_file() => "a regular file",
        () if kind.is_dir() => "a directory",
        () if kind.is_symlink() => "a symbolic link",
        () if kind.is_block_device() => "a block device",
        () if kind.is_char_device() => "a character device",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () => "something else",
    }
}
