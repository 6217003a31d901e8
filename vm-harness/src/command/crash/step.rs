//! The steps of a plug and an unplug behind which a run can be stopped: the fail points of
//! `ecr-runtime` and of the plugin.

use super::scene::State;

/// The command that is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    HotPlug,
    HotUnplug,
}

impl Verb {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::HotPlug => "hot-plug",
            Self::HotUnplug => "hot-unplug",
        }
    }

    /// What it ends with.
    pub(super) fn end(self) -> State {
        match self {
            Self::HotPlug => State::Attached,
            Self::HotUnplug => State::Gone,
        }
    }

    /// What there is before it.
    pub(super) fn start(self) -> State {
        match self {
            Self::HotPlug => State::Gone,
            Self::HotUnplug => State::Attached,
        }
    }
}

/// One step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) verb: Verb,
    /// The fail point behind it.
    pub(super) point: &'static str,
    /// What `list` says if the run ends right behind it.
    pub(super) leaves: State,
}

const fn plug(point: &'static str, leaves: State) -> Step {
    Step { verb: Verb::HotPlug, point, leaves }
}

const fn unplug(point: &'static str, leaves: State) -> Step {
    Step { verb: Verb::HotUnplug, point, leaves }
}

/// The steps of `ecr-runtime`.
pub(super) const STEPS: [Step; 12] = [
    plug("after-probe", State::Gone),
    plug("after-add-fd", State::Incomplete),
    plug("after-blockdev-add", State::Incomplete),
    plug("after-device-add", State::Incomplete),
    plug("after-attach", State::Incomplete),
    plug("after-outcome", State::Attached),
    unplug("before-detach", State::Attached),
    unplug("after-detach", State::Incomplete),
    unplug("remove-before-device-deleted", State::Incomplete),
    unplug("remove-after-device-del", State::Incomplete),
    unplug("remove-after-blockdev-del", State::Incomplete),
    unplug("after-remove", State::Gone),
];

/// The steps of the plugin in the guest, within one step of `ecr-runtime`. It takes back a failed
/// attach by itself, and stops in a failed detach where it is.
pub(super) const GUEST_STEPS: [Step; 15] = [
    plug("attach-after-uevent-socket", State::Gone),
    plug("attach-after-lookup", State::Gone),
    plug("attach-after-scan", State::Gone),
    plug("attach-after-wait", State::Gone),
    plug("attach-after-verify", State::Gone),
    plug("attach-after-node", State::Gone),
    plug("attach-after-filter", State::Gone),
    plug("attach-after-publish", State::Gone),
    unplug("detach-after-lookup", State::Attached),
    unplug("detach-after-release", State::Attached),
    unplug("detach-after-unlink", State::Incomplete),
    unplug("detach-after-revoke", State::Incomplete),
    unplug("detach-after-flush", State::Incomplete),
    unplug("detach-after-check", State::Incomplete),
    unplug("detach-after-delete", State::Incomplete),
];
