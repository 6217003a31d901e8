//! How much is measured: a whole run takes minutes, a quick one is a test of the measuring itself.

use super::{scale::Scale, throughput::Effort};

/// The numbers of rounds, volumes and more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) warm_up: usize,
    pub(super) rounds: usize,
    pub(super) polling_rounds: usize,
    pub(super) batch: usize,
    pub(super) batch_rounds: usize,
    pub(super) scale: Scale,
    /// How often all volumes are listed in each pass.
    pub(super) lists: usize,
    pub(super) throughput: Effort,
    /// Whether further VMs are booted: with an agent that logs, with an I/O thread, with an agent
    /// without the plugin.
    pub(super) more_vms: bool,
}

impl Plan {
    pub(super) fn whole(rounds: usize) -> Self {
        Self {
            warm_up: 5,
            rounds,
            polling_rounds: rounds,
            batch: 64,
            batch_rounds: (rounds / 5).max(1),
            scale: Scale { volumes: 256, window: 32, passes: 3 },
            lists: (rounds / 3).max(1),
            throughput: Effort { rounds: 3, milliseconds: 200, one_way: false },
            more_vms: true,
        }
    }

    pub(super) fn quick() -> Self {
        Self {
            warm_up: 1,
            rounds: 5,
            polling_rounds: 3,
            batch: 8,
            batch_rounds: 1,
            scale: Scale { volumes: 24, window: 6, passes: 1 },
            lists: 3,
            throughput: Effort { rounds: 1, milliseconds: 50, one_way: true },
            more_vms: false,
        }
    }
}
