//! Mounts a disk in a container, and unmounts it, by the steps of the plugin.

use std::{
    sync::{Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    thread,
    time::{Duration, Instant},
};

use agent_plugin::{
    Result,
    device_node::{Location, NodePath},
    file_system::{Kind, Limit, MountRequest, Owners, Superblock},
    mount::Mounts,
    mounted::{Mounting, Unmounted, unmount_in},
};

use super::{
    container::{self, Fixture},
    disk::Disk,
};

pub(crate) const PATH: &str = "/srv/data/deep";

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

/// Each test looks at the mounts of the whole machine.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    container::needs_root();
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a disk is mounted.
#[derive(Clone, Default)]
pub(crate) struct How {
    pub(crate) kind: Option<Kind>,
    pub(crate) options: Vec<String>,
    pub(crate) read_only: bool,
    pub(crate) owners: Option<Owners>,
}

fn location(container: &Fixture, path: &str) -> Result<Location> {
    let path = NodePath::new(path).unwrap();
    let find = move |root: &_, mounts: &_| Location::find(root, &path, mounts);
    Mounts::visit(&container.target, find)?.finish(soon())
}

pub(crate) fn mounting(container: &Fixture, disk: &Disk, how: How) -> Result<Mounting> {
    let target = &container.target;
    let request = MountRequest {
        source: disk.identity().source(&disk.name, disk.number),
        kind: how.kind,
        options: how.options,
        read_only: how.read_only,
        container: (target.id.clone(), target.container.clone()),
        owners: how.owners,
    };
    let location = location(container, PATH)?;
    location.check_mount()?;
    let mount = move || {
        let limit = Limit { until: soon(), check: &|| Ok(()) };
        request.mount(&AtomicU64::new(0), &limit)
    };
    let detached = target.aside(mount)?.finish(soon())?;
    Mounting::new(location, target, disk.identity(), detached)
}

pub(crate) fn mount(container: &Fixture, disk: &Disk, how: How) -> Result<Mounting> {
    let mut mounting = mounting(container, disk, how)?;
    mounting.publish(soon())?;
    Ok(mounting)
}

pub(crate) fn unmount(container: &Fixture, disk: &Disk) -> Result<Unmounted> {
    unmount_in(&container.target, disk.identity(), (false, false), soon())
}

pub(crate) fn reach(disk: &Disk, kind: Kind) -> Result<Superblock> {
    let source = disk.identity().source(&disk.name, disk.number);
    thread::spawn(move || Superblock::reach(&source, kind)).join().unwrap()
}
