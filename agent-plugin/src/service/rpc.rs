//! The methods of the service.

use super::policy;

/// A method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rpc {
    Probe,
    Attach,
    Detach,
    Inspect,
    Resize,
    Hold,
    Plug,
}

impl Rpc {
    /// Those with one request and one reply.
    pub(super) const CALLS: [Rpc; 6] =
        [Rpc::Probe, Rpc::Attach, Rpc::Detach, Rpc::Inspect, Rpc::Resize, Rpc::Hold];

    /// The streams, which are an attach and a detach as a conversation. An Unplug differs from a
    /// Detach only in how its caller gets the replies.
    pub(super) const STREAMS: [(&str, Rpc); 2] = [("Plug", Rpc::Plug), ("Unplug", Rpc::Detach)];

    /// Its name in a call.
    pub(super) fn name(self) -> &'static str {
        match self {
            Rpc::Probe => "Probe",
            Rpc::Attach => "Attach",
            Rpc::Detach => "Detach",
            Rpc::Inspect => "Inspect",
            Rpc::Resize => "Resize",
            Rpc::Hold => "Hold",
            Rpc::Plug => "Plug",
        }
    }

    /// Its name in the log and in the names of fault points. A Plug is an attach.
    pub(super) fn operation(self) -> &'static str {
        match self {
            Rpc::Probe => "probe",
            Rpc::Attach | Rpc::Plug => "attach",
            Rpc::Detach => "detach",
            Rpc::Inspect => "inspect",
            Rpc::Resize => "resize",
            Rpc::Hold => "hold",
        }
    }

    /// What the agent's policy is asked about. It is not about a Hold, whose Plug it allows.
    pub(super) fn question(self) -> &'static str {
        match self {
            Rpc::Probe => policy::PROBE,
            Rpc::Attach | Rpc::Plug | Rpc::Hold => policy::ATTACH,
            Rpc::Detach => policy::DETACH,
            Rpc::Inspect => policy::INSPECT,
            Rpc::Resize => policy::RESIZE,
        }
    }
}
