//! The options of
//! [`scsi-hd`](https://www.qemu.org/docs/master/system/device-emulation.html) that make the disk
//! report what the device behind it does. QEMU refuses a device with one value out of its range
//! (`blkconf_blocksizes`), so what it does not take is left out: these are hints. QEMU reads a
//! command byte by byte, so its defaults are left out as well.

use serde_json::{Value, json};

use crate::disk_geometry::DiskGeometry;

/// What QEMU assumes for both block sizes by default. The physical one is never below the logical
/// one.
const DEFAULT_BLOCK_SIZE: u32 = 512;
/// The largest block size that QEMU takes.
const MAX_BLOCK_SIZE: u32 = 2 << 20;
/// What QEMU assumes by default.
const DEFAULT_DISCARD_GRANULARITY: u32 = 4096;
/// The most that QEMU's disk discards at once by default.
const MAX_UNMAP_SIZE: u32 = 1 << 30;
/// SCSI's word for a medium that does not rotate.
const NON_ROTATING: u32 = 1;

/// Adds to `device`, the arguments of `device_add`, what the block device reports.
pub(super) fn add_geometry(device: &mut Value, geometry: &DiskGeometry) {
    let logical = geometry.logical_block_size;
    let physical = match geometry.physical_block_size.clamp(logical, MAX_BLOCK_SIZE.max(logical)) {
        size if size.is_power_of_two() => size,
        _ => logical,
    };
    if physical != DEFAULT_BLOCK_SIZE {
        device["logical_block_size"] = json!(logical);
        device["physical_block_size"] = json!(physical);
    }
    // The guest gets it as a number of blocks, in 16 bits.
    let minimum = geometry.minimum_io_size;
    if minimum > physical && minimum.is_multiple_of(logical) && minimum / logical <= u16::MAX.into()
    {
        device["min_io_size"] = json!(minimum);
    }
    // Linux ignores another one, with a warning.
    let optimal = geometry.optimal_io_size;
    if optimal != 0 && optimal.is_multiple_of(physical) {
        device["opt_io_size"] = json!(optimal);
    }
    let discard = geometry.discard_granularity;
    if discard != 0
        && discard != DEFAULT_DISCARD_GRANULARITY
        && discard.is_multiple_of(logical)
        && discard <= MAX_UNMAP_SIZE
    {
        device["discard_granularity"] = json!(discard);
    }
    add_rotation(device, geometry.rotational);
}

/// Adds that the medium does not rotate, which a guest otherwise assumes.
pub(super) fn add_rotation(device: &mut Value, rotational: bool) {
    if !rotational {
        device["rotation_rate"] = json!(NON_ROTATING);
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const KIB: u32 = 1 << 10;

    #[rstest]
    // logical, physical, minimum, optimal, discard, rotational
    #[case((512, 512, 512, 0, 0, true), json!({}))]
    #[case((512, 512, 512, 0, 4096, false), json!({"rotation_rate": 1}))]
    #[case(
        (512, 4096, 4096, 0, 512, true),
        json!({"logical_block_size": 512, "physical_block_size": 4096, "discard_granularity": 512})
    )]
    #[case(
        (4096, 4096, 64 * KIB, 256 * KIB, 64 * KIB, true),
        json!({
            "logical_block_size": 4096, "physical_block_size": 4096, "min_io_size": 64 * KIB,
            "opt_io_size": 256 * KIB, "discard_granularity": 64 * KIB,
        })
    )]
    // What QEMU would refuse, or the guest would ignore.
    #[case((512, 512, 33553921, 33553921, 4097, true), json!({}))]
    #[case((512, 512, 32 << 20, 0, 0, true), json!({}))]
    #[case((512, 512, 512, 0, 2 << 30, true), json!({}))]
    #[case((512, 4 << 20, 512, 0, 0, true), json!({
        "logical_block_size": 512, "physical_block_size": 2 << 20,
    }))]
    #[case((512, 3072, 512, 0, 0, true), json!({}))]
    #[case((512, 0, 0, 0, 0, true), json!({}))]
    fn what_the_device_reports_is_passed_on_within_the_bounds_of_qemu(
        #[case] (logical, physical, minimum, optimal, discard, rotational): (
            u32,
            u32,
            u32,
            u32,
            u32,
            bool,
        ),
        #[case] expected: Value,
    ) {
        let geometry = DiskGeometry {
            logical_block_size: logical,
            physical_block_size: physical,
            minimum_io_size: minimum,
            optimal_io_size: optimal,
            discard_granularity: discard,
            rotational,
        };
        let mut device = json!({});
        add_geometry(&mut device, &geometry);
        assert_eq!(device, expected);
    }
}
