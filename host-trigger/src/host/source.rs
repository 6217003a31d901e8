//! Sources: block devices and image files on the host, vetted. `found_source` finds and opens one;
//! here it is checked that it is safe to use, and stays so until QEMU gets its descriptor.

use std::{
    fs::{self, File},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::sys::stat::{major, minor};

use super::{
    backing::{self, Layers, OpenSource},
    conflict::Conflict,
    fd::{self, OtherOpeners},
    found_source::FoundSource,
    geometry,
    holders::{self, FileId},
    image_format,
    search::{self, Search},
};
use crate::{Deadline, Error, disk_geometry::DiskGeometry};

/// A vetted source.
#[derive(Debug, Clone)]
pub struct Source {
    /// The path as the user gave it.
    pub given: PathBuf,
    /// The real path.
    pub device: PathBuf,
    /// What distinguishes it from every other source on this host: `b:major:minor:diskseq` or
    /// `f:dev:inode`.
    pub identity: String,
    /// The size in bytes.
    pub size: u64,
    /// How it is opened, and how QEMU must use it.
    pub kind: SourceKind,
    file_id: FileId,
    read_only: bool,
    state: ClaimState,
    /// What it consists of, if it is claimed.
    layers: Arc<Layers>,
    /// For a file: it has no other opening at all, not even for reading.
    exclusive: bool,
    /// The medium rotates, or is not known.
    rotational: bool,
}

/// How a source is opened, and how QEMU must use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// A block device, opened with `O_DIRECT`.
    Block(DiskGeometry),
    /// A raw image file, opened without `O_DIRECT`.
    File,
}

/// Whether this process may use the source.
#[derive(Debug, Clone)]
enum ClaimState {
    /// It may: this is the descriptor that claims it.
    Claimed(Arc<File>),
    /// In use. The holder is determined only when it is needed.
    InUse,
    /// In use, or consisting of something that is in use.
    Conflicts(Conflict),
}

impl Source {
    /// Opens and vets the source at `path`. A source that something else uses is described too, but
    /// has no [`claim`](Self::claim): the VM that it is meant for may already use it.
    ///
    /// # Errors
    /// The source does not exist, is not safe to use, or could not be vetted until the deadline.
    pub async fn open(path: &Path, read_only: bool, deadline: Deadline) -> Result<Self, Error> {
        let path = path.to_owned();
        let open = move |search: &Search| {
            let mut source = Self::open_one(&path, read_only, search)?;
            find_conflicts(std::slice::from_mut(&mut source), search)?;
            Ok(source)
        };
        search::run(deadline, open).await
    }

    /// Opens and vets several sources. Their other holders are determined together, in one pass.
    ///
    /// # Errors
    /// As [`open`](Self::open), for the first source that fails.
    pub async fn open_all(
        paths: &[PathBuf],
        read_only: bool,
        deadline: Deadline,
    ) -> Result<Vec<Self>, Error> {
        let paths = paths.to_owned();
        let open = move |search: &Search| {
            let opened = paths.iter().map(|path| Self::open_one(path, read_only, search));
            let mut sources = opened.collect::<Result<Vec<_>, _>>()?;
            find_conflicts(&mut sources, search)?;
            Ok(sources)
        };
        search::run(deadline, open).await
    }

    fn open_one(path: &Path, read_only: bool, search: &Search) -> Result<Self, Error> {
        let named = path.to_owned();
        search.step(move || format!("the open of {named:?}"));
        let found = FoundSource::at(path)?;
        let (file, mut is_free) = found.open(read_only)?;
        let metadata = file.metadata().map_err(|e| Error::system("fstat", path, e))?;
        let vetted = match found.is_block {
            true => block(path, &file, &metadata, read_only),
            false => image(path, &metadata),
        };
        let (identity, size, kind, file_id) = vetted?;
        let mut exclusive = true;
        if kind == SourceKind::File {
            let openers = other_openers(path, &file)?;
            is_free = is_available(openers, read_only);
            exclusive = openers == OtherOpeners::None;
        }
        let rotational = match (kind, file_id) {
            (SourceKind::Block(geometry), _) => geometry.rotational,
            (SourceKind::File, FileId::Block(number) | FileId::File(number, _)) => {
                geometry::is_rotational(number).unwrap_or(true)
            }
        };
        let state = if is_free { ClaimState::Claimed(Arc::new(file)) } else { ClaimState::InUse };
        Ok(Self {
            given: path.to_owned(),
            device: found.device,
            identity,
            size,
            kind,
            file_id,
            read_only,
            state,
            layers: Arc::default(),
            exclusive,
            rotational,
        })
    }

    /// Returns the descriptor for QEMU, after a second check as [`claim_all`](Self::claim_all).
    ///
    /// # Errors
    /// As [`claim_all`](Self::claim_all).
    pub async fn claim(&self, deadline: Deadline) -> Result<&File, Error> {
        Self::claim_all(&[self], false, deadline).await?;
        self.claimed()
    }

    /// Checks a second time that the sources have not changed, and that nothing has claimed what
    /// they consist of; with `check_format`, also that no image has another format than raw.
    ///
    /// # Errors
    /// Something else uses a source: the error names the holder. Or the source has changed, or has
    /// another format.
    pub async fn claim_all(
        sources: &[&Self],
        check_format: bool,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let sources: Vec<Self> = sources.iter().map(|source| (*source).clone()).collect();
        let check = move |search: &Search| {
            for source in sources {
                let named = source.given.clone();
                search.step(move || format!("the second check of {named:?}"));
                if let Some(conflict) = source.conflict(search)? {
                    return Err(conflict.into_error(source.given));
                }
                let file = source.claimed()?;
                if check_format {
                    source.check_format(file)?;
                }
            }
            Ok(())
        };
        search::run(deadline, check).await
    }

    /// Returns the descriptor that claims the source.
    ///
    /// # Errors
    /// The source is in use.
    pub(crate) fn claimed(&self) -> Result<&File, Error> {
        match &self.state {
            ClaimState::Claimed(file) => Ok(file),
            ClaimState::InUse | ClaimState::Conflicts(_) => {
                Err(Error::SourceChanged { path: self.given.clone() })
            }
        }
    }

    /// Returns what is in the way of its use now.
    fn conflict(&self, search: &Search) -> Result<Option<Conflict>, Error> {
        Ok(match &self.state {
            ClaimState::Claimed(file) if self.is_still_free(file)? => {
                self.layers.check_again(search).err()
            }
            ClaimState::Conflicts(conflict) => Some(conflict.clone()),
            ClaimState::Claimed(_) | ClaimState::InUse => {
                let holder = holders::holder(self.file_id, Some(&self.device), search);
                Some(Conflict::of_source(holder))
            }
        })
    }

    /// Checks that an image does not have another format than raw. A block device is what it is:
    /// an encrypted disk that the container opens is normal.
    ///
    /// # Errors
    /// It seems to have one.
    fn check_format(&self, file: &File) -> Result<(), Error> {
        if self.kind != SourceKind::File {
            return Ok(());
        }
        let path = || self.given.clone();
        match image_format::of(file, self.size).map_err(|e| Error::system("read", path(), e))? {
            Some(format) => Err(Error::SourceFormat { path: path(), format }),
            None => Ok(()),
        }
    }

    fn as_open<'a>(&'a self, file: &'a File) -> OpenSource<'a> {
        let (file_id, read_only) = (self.file_id, self.read_only);
        OpenSource { file_id, read_only, file: file.as_fd(), path: Some(&self.device) }
    }

    /// Whether it is certain that no QEMU has anything of this source, not even a leftover of a
    /// killed run: that QEMU would have a file open, and a block device claimed.
    pub fn is_exclusive(&self) -> bool {
        self.exclusive && self.is_claimed()
    }

    /// Whether the medium rotates, or is not known.
    pub(crate) fn is_rotational(&self) -> bool {
        self.rotational
    }

    /// Whether this process may use the source: nothing else uses it.
    pub fn is_claimed(&self) -> bool {
        matches!(self.state, ClaimState::Claimed(_))
    }

    /// Whether the source is still the same and still unused. Meanwhile a loop device may have got
    /// another file, a mapping another table, an image another length or another opener.
    fn is_still_free(&self, file: &File) -> Result<bool, Error> {
        let path = &self.given;
        let metadata = file.metadata().map_err(|e| Error::system("fstat", path, e))?;
        let now = match self.kind {
            SourceKind::Block(_) => block(path, file, &metadata, self.read_only),
            SourceKind::File => image(path, &metadata),
        };
        match now {
            Ok((identity, size, ..)) if identity == self.identity && size == self.size => {}
            _ => return Err(Error::SourceChanged { path: path.clone() }),
        }
        // The claim keeps a block device free.
        Ok(self.kind != SourceKind::File
            || is_available(other_openers(path, file)?, self.read_only))
    }
}

/// Finds what conflicts with the use of a source although it could be claimed.
///
/// # Errors
/// The search for it did not end in time.
fn find_conflicts(sources: &mut [Source], search: &Search) -> Result<(), Error> {
    let needs_check = |file: &File, source: &Source| {
        // For most files the lease has answered this already.
        source.kind != SourceKind::File
            || fd::other_openers(file.as_fd()).is_ok_and(|openers| openers == OtherOpeners::Unknown)
    };
    let (mut checked, mut open) = (Vec::new(), Vec::new());
    for (index, source) in sources.iter().enumerate() {
        if let ClaimState::Claimed(file) = &source.state
            && needs_check(file, source)
        {
            checked.push(index);
            open.push(source.as_open(file));
        }
    }
    let examined = backing::examine(&open, search);
    drop(open);
    for (index, examined) in checked.into_iter().zip(examined) {
        match examined {
            Ok(layers) => sources[index].layers = Arc::new(layers),
            Err(conflict) if conflict.is_timeout() => {
                return Err(conflict.into_error(sources[index].given.clone()));
            }
            Err(conflict) => sources[index].state = ClaimState::Conflicts(conflict),
        }
    }
    Ok(())
}

/// Returns which other openings of the image there are.
fn other_openers(path: &Path, file: &File) -> Result<OtherOpeners, Error> {
    fd::other_openers(file.as_fd()).map_err(|e| Error::system("fcntl", path, e))
}

/// Whether an image with these other openers may be used. Readers do not conflict with each other.
/// Where the file system has no leases, `/proc` is searched later.
fn is_available(openers: OtherOpeners, read_only: bool) -> bool {
    match openers {
        OtherOpeners::None | OtherOpeners::Unknown => true,
        OtherOpeners::Readers => read_only,
        OtherOpeners::Writers => false,
    }
}

/// The identity, size, kind and file ID of a vetted source.
type Vetted = (String, u64, SourceKind, FileId);

fn block(
    path: &Path,
    file: &File,
    metadata: &fs::Metadata,
    read_only: bool,
) -> Result<Vetted, Error> {
    let failed = |e| Error::system("ioctl", path, e);
    let device = file.as_fd();
    if !read_only && fd::read_only(device).map_err(failed)? != 0 {
        return Err(Error::SourceReadOnly { path: path.to_owned() });
    }
    let size = fd::size(device).map_err(failed)?;
    if size == 0 {
        return Err(Error::SourceEmpty { path: path.to_owned() });
    }
    let number = metadata.rdev();
    let geometry = geometry::read(device, number).map_err(failed)?;
    geometry::check(&geometry, path, size)?;
    let kind = SourceKind::Block(geometry);
    // Kernels before 5.15 have no disk sequence number.
    let sequence = fd::disk_sequence(device).unwrap_or(0);
    Ok((
        format!("b:{}:{}:{sequence}", major(number), minor(number)),
        size,
        kind,
        FileId::Block(number),
    ))
}

fn image(path: &Path, metadata: &fs::Metadata) -> Result<Vetted, Error> {
    let (device, inode, size) = (metadata.dev(), metadata.ino(), metadata.len());
    match size {
        0 => Err(Error::SourceEmpty { path: path.to_owned() }),
        _ if !size.is_multiple_of(512) => {
            Err(Error::SourceUnaligned { path: path.to_owned(), size, unit: 512 })
        }
        _ => {
            Ok((format!("f:{device}:{inode}"), size, SourceKind::File, FileId::File(device, inode)))
        }
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
