//! A session with a sandbox: what every verb does before its own work. It finds the sandbox, locks
//! it, and holds the command's deadline, its stopwatch and its step log. QEMU and the guest are
//! connected in parallel. A verb may find that it does not need the guest: an error of the guest is
//! an error of the verb only if the verb awaits the guest.

use std::{fmt, pin::Pin, time::Duration};

use block_volume_qmp::{Command, GREETING_TIMEOUT, Qmp, Replies};
use futures_util::future::{Either, ready, select};

use super::signals::Signals;
use crate::{
    Deadline, Error,
    diagnostics::StepLog,
    host::lock::{self, SandboxLock},
    kata::{
        agent::Agent,
        agent_address::{self, AgentAddress},
        sandbox::{Sandbox, Search},
    },
    qemu::inventory::Inventory,
    stopwatch::Stopwatch,
};

/// The maximum time for `Probe`.
pub(crate) const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a session is opened with.
#[derive(Debug)]
pub struct SessionOptions {
    /// Which sandbox, and where its sockets are if they were named.
    pub search: Search,
    /// The end of the whole command.
    pub deadline: Deadline,
    /// Has measured what was done so far.
    pub watch: Stopwatch,
    /// Log each step to standard error.
    pub verbose: bool,
}

/// A sandbox that is found and locked.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) sandbox: Sandbox,
    pub(crate) deadline: Deadline,
    pub(crate) watch: Stopwatch,
    pub(crate) log: StepLog,
    /// QEMU's socket serves one client, and a run in the middle of its work would look incomplete:
    /// so commands that change nothing lock the sandbox, too.
    lock: Option<SandboxLock>,
}

impl Session {
    /// Finds and locks the sandbox, after any run that has the lock. Signals are caught from now
    /// on.
    ///
    /// # Errors
    /// The sandbox is not found, its lock is not released in time, or a signal arrived.
    pub(crate) async fn open(options: SessionOptions) -> Result<(Self, Signals), Error> {
        Located::new(options)?.lock().await
    }

    /// Gives the lock away, to be released by dropping it: other runs work on the sandbox then, and
    /// what was read of it may change. The connection to QEMU has to be closed before.
    pub(crate) fn unlock(&mut self) -> Option<SandboxLock> {
        self.lock.take()
    }

    /// Locks the sandbox again, after any run that has the lock.
    ///
    /// # Errors
    /// The lock is not released until `deadline`.
    pub(crate) async fn lock_again(&mut self, deadline: Deadline) -> Result<(), Error> {
        if self.lock.is_none() {
            self.lock = Some(lock::acquire(&self.sandbox.lock_directory(), deadline).await?);
        }
        Ok(())
    }
}

/// A sandbox that is found and not locked yet: for checks that need not wait for another run.
#[derive(Debug)]
pub(crate) struct Located {
    pub(crate) sandbox: Sandbox,
    deadline: Deadline,
    watch: Stopwatch,
    signals: Signals,
    log: StepLog,
}

impl Located {
    /// Finds the sandbox.
    ///
    /// # Errors
    /// It is not found.
    pub(crate) fn new(options: SessionOptions) -> Result<Self, Error> {
        let signals = Signals::catch()?;
        let SessionOptions { search, deadline, watch, verbose } = options;
        let sandbox = Sandbox::find(&search)?;
        let log = StepLog { enabled: verbose };
        Ok(Self { sandbox, deadline, watch, signals, log })
    }

    /// Locks the sandbox, after any run that has the lock.
    ///
    /// # Errors
    /// The lock is not released in time, or a signal arrived.
    pub(crate) async fn lock(self) -> Result<(Session, Signals), Error> {
        let Self { sandbox, deadline, mut watch, mut signals, log } = self;
        watch.lap("find");
        let directory = sandbox.lock_directory();
        let lock = lock::acquire(&directory, deadline);
        let lock = signals.unless_caught(lock).await?;
        watch.lap("lock");
        Ok((Session { sandbox, deadline, watch, log, lock: Some(lock) }, signals))
    }
}

/// The agent and its address.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) agent: Agent,
    pub(crate) address: AgentAddress,
}

/// QEMU with its inventory, and the guest as soon as it replies.
pub(crate) struct Connections<'a> {
    pub(crate) qmp: Qmp,
    pub(crate) inventory: Inventory,
    pub(crate) guest: Pin<Box<dyn Future<Output = Result<Guest, Error>> + 'a>>,
}

impl fmt::Debug for Connections<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("inventory", &self.inventory).finish_non_exhaustive()
    }
}

/// Connects to QEMU and the guest, and reads QEMU's whole inventory.
///
/// # Errors
/// QEMU cannot be reached.
pub(crate) async fn connect(
    sandbox: &Sandbox,
    deadline: Deadline,
) -> Result<Connections<'_>, Error> {
    let nodes = [Inventory::node_query()];
    let (mut connections, mut replies) = connect_asking(sandbox, deadline, &nodes).await?;
    connections.inventory.nodes_from_replies(&mut replies)?;
    Ok(connections)
}

/// Connects to QEMU and the guest, and reads QEMU's inventory without the block nodes. Returns also
/// the replies to further queries: QEMU executes them while the guest is being connected.
///
/// # Errors
/// QEMU cannot be reached.
pub(crate) async fn connect_asking<'a>(
    sandbox: &'a Sandbox,
    deadline: Deadline,
    more: &[Command<'_>],
) -> Result<(Connections<'a>, Replies), Error> {
    let qemu = Box::pin(connect_qemu_asking(sandbox, deadline, more));
    match select(qemu, Box::pin(connect_guest(sandbox, deadline))).await {
        Either::Left((qemu, guest)) => {
            let (qmp, inventory, replies) = qemu?;
            Ok((Connections { qmp, inventory, guest }, replies))
        }
        Either::Right((guest, qemu)) => {
            let (qmp, inventory, replies) = qemu.await?;
            Ok((Connections { qmp, inventory, guest: Box::pin(ready(guest)) }, replies))
        }
    }
}

/// Connects to QEMU and reads its whole inventory.
///
/// # Errors
/// It cannot be reached.
pub(crate) async fn connect_qemu(
    sandbox: &Sandbox,
    deadline: Deadline,
) -> Result<(Qmp, Inventory), Error> {
    let nodes = [Inventory::node_query()];
    let (qmp, mut inventory, mut replies) = connect_qemu_asking(sandbox, deadline, &nodes).await?;
    inventory.nodes_from_replies(&mut replies)?;
    Ok((qmp, inventory))
}

/// Connects to QEMU, and reads its inventory without the block nodes. Returns also the replies to
/// further queries.
async fn connect_qemu_asking(
    sandbox: &Sandbox,
    deadline: Deadline,
    more: &[Command<'_>],
) -> Result<(Qmp, Inventory, Replies), Error> {
    let queries = [&Inventory::queries()[..], more].concat();
    let (qmp, mut replies) =
        sandbox.connect_qmp_within(deadline, GREETING_TIMEOUT, &queries).await?;
    Ok((qmp, Inventory::from_replies(&mut replies)?, replies))
}

/// Connects to the guest and checks its API level.
async fn connect_guest(sandbox: &Sandbox, deadline: Deadline) -> Result<Guest, Error> {
    let address = sandbox.agent_address(deadline).await?;
    let dialed = agent_address::dial(&address, deadline).await;
    let agent = Agent::new(dialed.map_err(|e| sandbox.or_starting(e))?);
    agent.probe("", Vec::new(), Vec::new(), deadline.capped(PROBE_TIMEOUT)).await?;
    Ok(Guest { agent, address })
}
