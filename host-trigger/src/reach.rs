//! Reaching QEMU and the guest side by side, for verbs that may find that they can do without the
//! guest: whoever needs it waits for it then, and only then its errors count.

use std::{fmt, pin::Pin, time::Duration};

use futures_util::future::{Either, ready, select};

use crate::{
    Deadline, Error,
    agent::{self, Agent, AgentAddress},
    registry::Registry,
    sandbox::Place,
};
use block_volume_qmp::Qmp;

/// The longest that the guest may take to say what it can.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// QEMU with all that it has, and the guest as soon as it answers.
pub(crate) struct Reached<'a> {
    pub(crate) qmp: Qmp,
    pub(crate) registry: Registry,
    guest: Pin<Box<dyn Future<Output = Result<Guest, Error>> + 'a>>,
}

/// The agent, and where it is.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) agent: Agent,
    pub(crate) address: AgentAddress,
}

impl fmt::Debug for Reached<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reached").field("registry", &self.registry).finish_non_exhaustive()
    }
}

impl<'a> Reached<'a> {
    /// Connects to both, and reads all that QEMU has.
    ///
    /// # Errors
    /// QEMU cannot be asked.
    pub(crate) async fn new(place: &'a Place, deadline: Deadline) -> Result<Self, Error> {
        let qemu = Box::pin(ask_qemu(place, deadline));
        match select(qemu, Box::pin(ask_guest(place, deadline))).await {
            Either::Left((qemu, guest)) => {
                let (qmp, registry) = qemu?;
                Ok(Self { qmp, registry, guest })
            }
            Either::Right((guest, qemu)) => {
                let (qmp, registry) = qemu.await?;
                Ok(Self { qmp, registry, guest: Box::pin(ready(guest)) })
            }
        }
    }

    /// QEMU alone, and the guest for whoever awaits it.
    pub(crate) fn split(self) -> (Qmp, Registry, impl Future<Output = Result<Guest, Error>> + 'a) {
        (self.qmp, self.registry, self.guest)
    }
}

/// QEMU alone, with all that it has.
///
/// # Errors
/// It cannot be asked.
pub(crate) async fn ask_qemu(place: &Place, deadline: Deadline) -> Result<(Qmp, Registry), Error> {
    let mut qmp = place.connect_qmp(deadline).await?;
    let mut registry = Registry::read(&mut qmp).await?;
    registry.read_nodes(&mut qmp).await?;
    Ok((qmp, registry))
}

/// Does the guest speak our level of the contract?
async fn ask_guest(place: &Place, deadline: Deadline) -> Result<Guest, Error> {
    let address = place.agent_address(deadline).await?;
    let agent = Agent::new(agent::dial(&address, deadline).await?);
    agent.probe("", Vec::new(), deadline.within(PROBE_TIMEOUT)).await?;
    Ok(Guest { agent, address })
}
