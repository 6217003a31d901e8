//! What a block device of the host reports about itself that its disk in the guest has to report as
//! well: block sizes, the requests that suit it, and whether it rotates.

/// The geometry of a block device. All sizes are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskGeometry {
    /// The smallest unit that the device can address.
    pub logical_block_size: u32,
    /// The smallest unit that the device writes atomically.
    pub physical_block_size: u32,
    /// The smallest request that the device handles well.
    pub minimum_io_size: u32,
    /// The size of the requests that suit the device best; 0 if it names none.
    pub optimal_io_size: u32,
    /// The unit in which the device discards; 0 if it does not discard.
    pub discard_granularity: u32,
    /// Whether it rotates, or does not say.
    pub rotational: bool,
}
