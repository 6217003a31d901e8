//! A mount that is attached nowhere: made, idmapped and given to its group before any container
//! sees it ([mount_setattr(2)](https://man7.org/linux/man-pages/man2/mount_setattr.2.html)).

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, atomic::AtomicU64},
};

use nix::{errno::Errno, fcntl::OFlag, sys::stat::Mode};

use super::{
    Source,
    context::Context,
    kernel_log::KernelLog,
    kind::Kind,
    magic,
    options::Options,
    owners::{Limit, Owners},
};
use crate::{
    agent::Container,
    error::{BoxedError, Error, InvalidField, Result, Unsupported},
    fault,
    file_system_error::FileSystemError,
    mount, named,
    node::open_block_device,
    private_dev,
};

/// What to mount, and how.
#[derive(Debug, Clone)]
pub struct MountRequest {
    /// The disk.
    pub source: Source,
    /// The type; `None`: as the superblock has it.
    pub kind: Option<Kind>,
    /// Mount options.
    pub options: Vec<String>,
    /// Both the mount and the superblock are read-only.
    pub read_only: bool,
    /// The container's id, for messages, and the container. The mount gets the ids of its user
    /// namespace, if it has one.
    pub container: (Arc<str>, Arc<Container>),
    /// Whom the files are given to.
    pub owners: Option<Owners>,
}

/// A mount that is attached nowhere. It ends with its descriptor.
#[derive(Debug)]
pub struct Detached {
    /// Its root directory.
    pub mount: OwnedFd,
    /// Its type.
    pub kind: Kind,
    /// Whether it has the ids of the container's user namespace.
    pub idmapped: bool,
}

impl MountRequest {
    /// Makes the mount. The calling thread must end soon: it leaves its mount namespace. The number
    /// of files that were given to a group is counted in `changed`.
    ///
    /// # Errors
    /// Nothing is mounted any more.
    pub fn mount(&self, changed: &AtomicU64, limit: &Limit<'_>) -> Result<Detached> {
        let Source { disk, number, node } = &self.source;
        let file = open_block_device(disk, *number, OFlag::O_RDONLY)
            .map_err(Error::system("open", &disk.as_str()))?;
        let kind = magic::identify(disk, &file, self.kind)?;
        drop(file);
        let options = self.checked(kind)?;
        // A private /dev hides the log.
        let log = KernelLog::from_now_on();
        let path = private_dev::enter(node, node, *number, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let mount = self.created(kind, &options, &path, log)?;
        private_dev::leave().map_err(Error::system("umount2", &"a tmpfs"))?;
        let idmapped = self.map_ids(kind, &mount)?;
        if let Some(owners) = &self.owners {
            owners.give(&mount, changed, limit)?;
        }
        Ok(Detached { mount, kind, idmapped })
    }

    fn checked(&self, kind: Kind) -> Result<Options> {
        let invalid = |value: &str, rule| {
            let field = "mount.options".to_owned();
            let value = format!("{value:?}");
            BoxedError::from(Error::InvalidRequest(Box::new(InvalidField { field, value, rule })))
        };
        if kind.is_read_only() && !self.read_only {
            let rule = "is a file system that cannot be written: request read-only access";
            return Err(invalid(kind.name(), rule));
        }
        Options::new(kind, &self.options, self.read_only)
            .map_err(|(option, rule)| invalid(&option, rule))
    }

    fn created(
        &self,
        kind: Kind,
        options: &Options,
        path: &CStr,
        log: KernelLog,
    ) -> Result<OwnedFd> {
        let context = Context::open(kind.name()).map_err(|errno| match errno {
            Errno::ENODEV => Unsupported::NoDriver { file_system: kind.name() }.into(),
            Errno::ENOSYS => Unsupported::Kernel { call: "fsopen", since: "5.2" }.into(),
            other => Error::system("fsopen", &kind)(other),
        })?;
        let set = |(name, value): &(String, Option<String>)| context.option(name, value.as_deref());
        let made = context
            .source(path)
            .and_then(|()| options.parameters.iter().try_for_each(set))
            .and_then(|()| context.create())
            .and_then(|()| context.mount(options.attributes));
        made.map_err(|errno| {
            let device = self.source.disk.clone();
            if errno == Errno::EBUSY {
                return Error::Busy { device, holders: Vec::new() }.into();
            }
            let mut messages = context.messages();
            messages.extend(log.about(&self.source.disk));
            messages.dedup();
            let source = io::Error::from(errno);
            FileSystemError::Refused { device, file_system: kind.name(), source, messages }.into()
        })
    }

    /// Gives the mount the ids of the container's user namespace.
    fn map_ids(&self, kind: Kind, mount: &OwnedFd) -> Result<bool> {
        let (id, container) = &self.container;
        let Some(namespace) = &container.user_namespace else { return Ok(false) };
        if fault::skips("idmap") {
            return Ok(false);
        }
        match mount::set_id_map(mount, namespace) {
            Ok(()) => Ok(true),
            Err(Errno::EINVAL) => Err(Unsupported::NotIdmapped {
                file_system: kind.name(),
                container: id.to_string(),
            }
            .into()),
            Err(Errno::ENOSYS) => {
                Err(Unsupported::Kernel { call: "mount_setattr", since: "5.12" }.into())
            }
            Err(errno) => Err(Error::system("mount_setattr", &"MOUNT_ATTR_IDMAP")(errno)),
        }
    }
}

/// Opens the root directory of a mount for reading.
pub(super) fn opened(mount: &OwnedFd) -> Result<OwnedFd, Errno> {
    named::openat(&mount.as_fd(), ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
}
