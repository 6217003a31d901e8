//! Checks the parts of a request that are about a mount.

use super::{
    field::{Field, invalid},
    request::{known, required},
    requested,
};
use crate::{
    api::{block_volume as wire, check_mount_option},
    error::Result,
    file_system::Kind,
    volume::{AccessMode, FsGroup, Mount, Mounted},
};

/// The mode of an attachment that is a mount: the type of a directory, which is no mode of a device
/// node, so that a plugin of an earlier version refuses the request.
const MODE: u32 = 0o40000;
const MOST_OPTIONS: usize = 32;
const ALWAYS: i32 = wire::FsGroupChange::FS_GROUP_CHANGE_ALWAYS as i32;

/// The mount of an attachment, if it is one.
pub(super) fn mount(
    field: Field,
    item: &requested::Attachment<'_>,
    access: AccessMode,
) -> Result<Option<Mount>> {
    let Some(mount) = &item.mount else { return Ok(None) };
    if (item.mode, item.uid, item.gid) != (MODE, 0, 0) {
        let found = format!("mode {:o}, owner {}:{}", item.mode, item.uid, item.gid);
        let rule = "must be mode 40000 and owner 0:0 for a mount";
        return Err(invalid(field.part("owner"), &found, rule));
    }
    let kind = match mount.file_system {
        "" => None,
        name => Some(kind(field.part("mount.file_system"), name)?),
    };
    let at_options = field.part("mount.options");
    if mount.options.len() > MOST_OPTIONS {
        return Err(invalid(at_options, &mount.options.len(), "must be at most 32"));
    }
    let mut options = Vec::with_capacity(mount.options.len());
    for option in &mount.options {
        check_mount_option(kind.map(Kind::name), option)
            .map_err(|rule| invalid(at_options, option, rule))?;
        options.push((*option).to_owned());
    }
    let fs_group = match mount.fs_group {
        Some(fs_group) => Some(group(field.part("mount.fs_group"), fs_group, access)?),
        None => None,
    };
    Ok(Some(Mount { kind, options, fs_group }))
}

fn kind(field: Field, name: &str) -> Result<Kind> {
    let rule = "must be ext2, ext3, ext4, xfs, btrfs, vfat, erofs or squashfs";
    Kind::named(name).ok_or_else(|| invalid(field, &name, rule))
}

fn group(field: Field, item: requested::FsGroup, access: AccessMode) -> Result<FsGroup> {
    let change = known(field, item.change, ALWAYS)?;
    if item.gid == u32::MAX {
        return Err(invalid(field, &item.gid, "must be a group id below 4294967295"));
    }
    if access == AccessMode::ReadOnly {
        return Err(invalid(field, &item.gid, "must be absent where access is read-only"));
    }
    Ok(FsGroup { gid: item.gid, always: change == ALWAYS })
}

/// What an attach has mounted, as the host recorded it.
pub(super) fn mounted(field: Field, item: &requested::Outcome<'_>) -> Result<Mounted> {
    let field = field.part("outcome.mounted");
    let item = required(field, item.mounted.as_ref())?;
    Ok(Mounted {
        kind: kind(field, item.file_system)?,
        idmapped: item.idmapped,
        owners_changed: item.owners_changed,
    })
}
