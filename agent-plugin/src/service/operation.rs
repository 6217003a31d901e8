//! What the rpcs have in common.
//!
//! ttrpc drops a handler's future when its caller closes the connection. So the work runs on a
//! thread that is started for the request and ends with it: nothing interrupts it, and
//! there is no thread while the service is idle.

use std::{
    thread,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use ttrpc::r#async::TtrpcContext;

use super::{BlockVolume, at_work::Demand, audit};
use crate::{
    agent::Agent,
    error::{Error, Result},
    fault,
    volume::{self, Announced, CancelOnDrop, Failed, Stages},
};

/// The time that each stage took.
pub(super) type Taken = [(&'static str, Duration)];

/// One rpc. A value is a request that was checked and authorized.
pub(super) trait Operation: Sized + Send + 'static {
    /// Its name in the log and in the names of fault points.
    const NAME: &'static str;
    /// The message of the request.
    type Request: Sync;
    /// The message of the reply.
    type Response: Send + 'static;
    /// What the work was about, for the audit.
    type Subject;
    /// What the work returns.
    type Output;

    /// Announces the request in the queues of its volumes, before it waits for anything. By default
    /// it does not.
    ///
    /// # Errors
    /// The request is invalid.
    fn announce<A: Agent>(
        _service: &BlockVolume<A>,
        _request: &Self::Request,
    ) -> Result<Option<Announced>> {
        Ok(None)
    }

    /// What it takes of the service while it works.
    fn demand(_request: &Self::Request) -> Demand {
        Demand::default()
    }

    /// Checks the request, asks the agent, and looks up the containers.
    fn prepare<A: Agent>(
        service: &BlockVolume<A>,
        request: &Self::Request,
    ) -> impl Future<Output = Result<Self>> + Send;

    /// Joins the queues of its volumes, when nothing can refuse the request any more: from then on
    /// it may cancel others. By default it has none.
    ///
    /// # Errors
    /// A later request has cancelled it.
    fn join<A: Agent>(
        self,
        _service: &BlockVolume<A>,
        _announced: Option<Announced>,
    ) -> Result<Self> {
        Ok(self)
    }

    /// Does the work, on its own thread. A ticket of the queues is dropped with `self`, so
    /// that the next request starts before this one is answered.
    fn run(
        self,
        began: Instant,
        stages: &mut Stages,
    ) -> (Self::Subject, Result<Self::Output, Failed>);

    /// Encodes the result.
    fn reply(result: Result<&Self::Output, &Failed>, taken: &Taken) -> Self::Response;

    /// Names what was worked on, for the audit. There is an output where the work succeeded.
    fn describe(subject: &Self::Subject, output: Option<&Self::Output>) -> String;

    /// Names what was requested, by a request that may not be valid, for the audit.
    fn describe_request(request: &Self::Request) -> String;

    /// What cancels the work when the caller closes the connection. By default the work continues.
    fn cancel_on_drop(&self) -> Option<CancelOnDrop> {
        None
    }
}

/// Serves one request. If it never starts or panics, the audit line is about what was requested.
pub(super) async fn serve<O: Operation, A: Agent>(
    service: &BlockVolume<A>,
    context: &TtrpcContext,
    request: &O::Request,
) -> O::Response {
    let began = Instant::now();
    let prepare = async {
        let announced = O::announce(service, request)?;
        let place = service.at_work.enter(O::demand(request), began, context.timeout_nano).await?;
        let operation = O::prepare(service, request).await?.join(service, announced)?;
        Ok((operation, place))
    };
    // Both are dropped with this future, when the caller closes the connection: a thread that a
    // container keeps waiting keeps nobody else from work.
    let (operation, _place) = match prepare.await {
        Ok((operation, place)) => (Ok(operation), Some(place)),
        Err(error) => (Err(error), None),
    };
    let _cancel = operation.as_ref().ok().and_then(O::cancel_on_drop);
    let failed = match operation.and_then(|operation| start(operation, began)) {
        Err(error) => Failed::from(error),
        Ok(reply) => match reply.await {
            Ok(reply) => return reply,
            // Only a panic drops the sender without a reply, and how far the work came is not
            // known.
            Err(_) => Failed { partial: true, ..Failed::from(Error::Panicked) },
        },
    };
    audit::log(O::NAME, &O::describe_request(request), began, Some(&failed));
    O::reply(Err(&failed), &[])
}

/// Starts the work on its own thread, which continues if its reply is not awaited any more.
/// The thread sends the reply first and writes the audit line then: a console is slow.
fn start<O: Operation>(operation: O, began: Instant) -> Result<oneshot::Receiver<O::Response>> {
    let (sender, reply) = oneshot::channel();
    let work = move || {
        let is_gone = {
            let mut stages = Stages::new(O::NAME);
            volume::sweep();
            let (subject, result) = operation.run(began, &mut stages);
            volume::sweep();
            let is_gone = sender.send(O::reply(result.as_ref(), &stages.taken)).is_err();
            let description = O::describe(&subject, result.as_ref().ok());
            audit::log(O::NAME, &description, began, result.as_ref().err());
            is_gone
        };
        fault::at("thread");
        if is_gone {
            tracing::info!("the caller closed the connection before the reply");
        }
    };
    let spawned = thread::Builder::new().name("block-volume".to_owned()).spawn(work);
    spawned.map(|_| reply).map_err(Error::system("clone", "a thread"))
}
