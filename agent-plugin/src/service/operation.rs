//! What the methods have in common: check, ask the agent, run on a thread, reply, audit.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use ttrpc::r#async::StreamInner;

use super::{
    BlockVolume,
    at_work::{Demand, Place},
    attach, audit,
    conversations::Side,
    detach,
    field::{Field, invalid},
    inspect, policy, probe,
    replies::{Replies, Reply},
    reply,
    request::{self, Checked},
    requested::{PlugStep, Request},
    resize,
    rpc::Rpc,
};
use crate::{
    error::{Error, Result},
    fault, log,
    thread::Thread,
    volume::{
        self, Announced, Attached, CancelOnDrop, DetachOutput, Failed, Inspected, Probed, Resized,
        Stages, Step, Steps,
    },
    worker,
};

/// A request that was checked and authorized, and knows its containers.
pub(super) trait Operation: Send {
    /// Does the work, on its own thread. A ticket of the queues is dropped with `self`, so that the
    /// next request starts before this one is answered.
    fn run(self: Box<Self>, deadline: Deadline, stages: &mut Stages, caller: &Caller) -> Done;

    /// What cancels the work when the caller closes the connection. By default the work continues.
    fn cancel_on_drop(&self) -> Option<CancelOnDrop> {
        None
    }
}

/// When a request began, and its time-out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    pub(super) began: Instant,
    pub(super) timeout: Duration,
}

impl Deadline {
    pub(super) fn at(self) -> Instant {
        self.began + self.timeout
    }
}

/// What an operation did.
pub(super) struct Done {
    pub(super) result: Result<Output, Failed>,
    /// What was worked on, for the audit.
    pub(super) about: String,
}

/// What an operation returns.
#[derive(Debug)]
pub(crate) enum Output {
    Probed(Probed),
    Attached(Vec<Attached>),
    Detached(DetachOutput),
    Inspected(Vec<Inspected>),
    Resized(Vec<Resized>),
}

/// Who gets the replies of an operation.
pub(super) struct Caller {
    replies: Arc<Replies>,
    steps: Option<Arc<Steps>>,
}

impl Caller {
    /// Sends a reply before the last one. Only the caller of a stream gets it.
    pub(super) fn say(&self, reply: Vec<u8>) {
        self.replies.push(Reply::Step(reply));
    }

    /// The further steps of the caller, in a conversation.
    pub(super) fn steps(&self) -> Option<&Steps> {
        self.steps.as_deref()
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        // After a last reply it is not read.
        self.replies.push(Reply::Panicked);
    }
}

/// Work that has begun.
struct Started {
    replies: Arc<Replies>,
    steps: Option<Arc<Steps>>,
    // Both are dropped with the future of the request, when the caller closes the connection: a
    // thread that a container keeps waiting keeps no other request from work.
    _place: Place,
    _cancel: Option<CancelOnDrop>,
}

/// Serves one request, in a conversation on its stream. Returns the last reply, encoded. If the
/// work never starts or panics, the audit line is about what was requested.
///
/// The future is in a box, so that it is compiled once for both kinds of handlers.
pub(super) fn serve<'a>(
    service: &'a BlockVolume,
    rpc: Rpc,
    request: &'a Request<'a>,
    timeout_nano: i64,
    stream: Option<&'a mut StreamInner>,
) -> Pin<Box<dyn Future<Output = Option<Vec<u8>>> + Send + 'a>> {
    Box::pin(last_reply(service, rpc, request, timeout_nano, stream))
}

async fn last_reply(
    service: &BlockVolume,
    rpc: Rpc,
    request: &Request<'_>,
    timeout_nano: i64,
    stream: Option<&mut StreamInner>,
) -> Option<Vec<u8>> {
    let began = Instant::now();
    let side = stream.as_ref().map(|_| service.conversations.join(request.conversation));
    let failed = match start(service, rpc, request, timeout_nano, began, side.as_ref()).await {
        Err(error) => Failed::from(error),
        Ok(mut started) => match started.last_reply(stream.zip(side.as_ref())).await {
            Some(reply) => return reply,
            // How far the work came is not known.
            None => {
                let mut failed = Failed::from(Error::Panicked);
                failed.partial = true;
                failed
            }
        },
    };
    audit::log(rpc.operation(), &audit::requested(request), began, Some(&failed));
    Some(reply::encoded(rpc, Err(&failed), &[]))
}

/// Checks the request, asks the agent, looks up the containers, and starts the work.
async fn start(
    service: &BlockVolume,
    rpc: Rpc,
    request: &Request<'_>,
    timeout_nano: i64,
    began: Instant,
    side: Option<&Side<'_>>,
) -> Result<Started> {
    let checked = request::check(rpc, request)?;
    if side.is_some() && !checked.wait.is_zero() {
        // A wait ends with its caller, and a stream does not notice the end of its connection.
        let rule = "must be 0 for Unplug";
        return Err(invalid(Field::of_request("wait_ms"), &request.wait_ms, rule));
    }
    // An attach announces itself before it waits for anything.
    let is_attach = matches!(rpc, Rpc::Attach | Rpc::Plug);
    let mut announced = is_attach.then(|| announce(service, &checked));
    let steps = match (&announced, side) {
        (Some(announced), Some(side)) => {
            let held = side.held(announced.cancel_on_drop());
            let held = tokio::time::timeout(checked.timeout, held).await;
            held.map_err(|_| Error::TimedOut { awaited: "the Hold of this Plug".to_owned() })?;
            Some(Arc::new(Steps::new()?))
        }
        _ => None,
    };
    let place = service.at_work.enter(demand(rpc, request), began, timeout_nano).await?;
    let question = policy::question(rpc, &checked);
    service.agent.authorize(rpc.question(), &question).await?;
    if rpc == Rpc::Resize {
        // In the queues as an attach is: a detach of one of these volumes ends the wait. It joins
        // them when the disks were found.
        announced = Some(announce(service, &checked));
    }
    let found = service.find_all(rpc, &checked).await;
    let deadline = Deadline { began, timeout: checked.timeout };
    // When nothing can refuse the request any more, it joins the queues of its volumes: from then
    // on it may cancel others.
    let operation: Box<dyn Operation> = match (rpc, announced) {
        (Rpc::Resize, Some(announced)) => Box::new(resize::Resize::new(&checked, announced)),
        (_, Some(announced)) => Box::new(attach::Attach::new(&checked, &found, announced)?),
        (Rpc::Detach, _) => Box::new(detach::Detach::new(service, &checked, &found)?),
        (Rpc::Inspect, _) => Box::new(inspect::Inspect::new(&checked, &found)),
        _ => Box::new(probe::Probe::new(&checked, &found)?),
    };
    let cancel = operation.cancel_on_drop();
    let replies = Arc::<Replies>::default();
    let caller = Caller { replies: replies.clone(), steps: steps.clone() };
    let started = Started { replies, steps, _place: place, _cancel: cancel };
    run(rpc, operation, deadline, caller)?;
    Ok(started)
}

/// What comes next in a conversation.
enum Event {
    Reply(Reply),
    Heard(ttrpc::Result<Vec<u8>>),
}

impl Started {
    /// Waits for the last reply. In a conversation it sends those before it, and hands over the
    /// steps of the caller. `None`: the work has panicked.
    async fn last_reply(
        &mut self,
        conversation: Option<(&mut StreamInner, &Side<'_>)>,
    ) -> Option<Option<Vec<u8>>> {
        let Some((stream, side)) = conversation else {
            loop {
                match self.replies.next().await {
                    Reply::Step(_) => {}
                    Reply::Last(reply) => return Some(reply),
                    Reply::Panicked => return None,
                }
            }
        };
        let mut is_open = true;
        loop {
            match self.next(stream, is_open).await {
                Event::Reply(Reply::Panicked) => return None,
                Event::Reply(Reply::Last(reply)) => return Some(reply),
                Event::Reply(Reply::Step(reply)) => {
                    if stream.send(reply).await.is_err() {
                        side.cancel();
                    }
                }
                Event::Heard(Ok(bytes)) => {
                    if let Some(steps) = &self.steps {
                        steps.push(step(&bytes));
                    }
                }
                Event::Heard(Err(_)) => {
                    is_open = false;
                    side.cancel();
                }
            }
        }
    }

    async fn next(&self, stream: &mut StreamInner, is_open: bool) -> Event {
        let (mut heard, mut reply) = (pin!(stream.recv()), pin!(self.replies.next()));
        poll_fn(|context| match reply.as_mut().poll(context) {
            Poll::Ready(reply) => Poll::Ready(Event::Reply(reply)),
            Poll::Pending if is_open => heard.as_mut().poll(context).map(Event::Heard),
            Poll::Pending => Poll::Pending,
        })
        .await
    }
}

/// A step of the caller. One that cannot be decoded is out of order, too.
fn step(bytes: &[u8]) -> Step {
    match PlugStep::decode(bytes) {
        Ok(PlugStep::Go) => Step::Go,
        Ok(PlugStep::Commit) => Step::Commit,
        _ => Step::Other,
    }
}

/// What a request takes of the service while it works. An inspection changes no volume.
fn demand(rpc: Rpc, request: &Request<'_>) -> Demand {
    let volumes = if rpc == Rpc::Inspect { 0 } else { request.volumes.len() };
    Demand { volumes, is_patient: request.wait_ms > 0, timeout_ms: request.timeout_ms }
}

fn announce(service: &BlockVolume, checked: &Checked) -> Announced {
    service.queues.announce(checked.serials())
}

/// Starts the work on its own thread, which continues if its reply is not awaited any more.
/// The thread sends the reply first and writes the audit line then: a console is slow.
fn run(rpc: Rpc, operation: Box<dyn Operation>, deadline: Deadline, caller: Caller) -> Result<()> {
    let work = move || {
        let is_gone = {
            let mut stages = Stages::new(rpc.operation());
            volume::sweep();
            let Done { result, about } = operation.run(deadline, &mut stages, &caller);
            volume::sweep();
            // Who has committed has had the last reply.
            let is_silent = rpc == Rpc::Plug && result.is_ok();
            let reply = (!is_silent).then(|| reply::encoded(rpc, result.as_ref(), &stages.taken));
            let is_gone = Arc::strong_count(&caller.replies) == 1;
            caller.replies.push(Reply::Last(reply));
            audit::log(rpc.operation(), &about, deadline.began, result.as_ref().err());
            is_gone
        };
        fault::at("thread");
        if is_gone {
            log::info(format_args!("the caller closed the connection before the reply"));
        }
    };
    worker::spawn(Thread::Request, Box::new(work)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::requested::Volume;

    #[test]
    fn an_inspection_of_many_volumes_is_not_counted_apart() {
        let volumes = (0..100).map(|_| Volume::default()).collect();
        let request = Request { volumes, timeout_ms: 7, wait_ms: 5, ..Request::default() };
        assert_eq!(demand(Rpc::Inspect, &request).volumes, 0);
        let demand = demand(Rpc::Detach, &request);
        assert_eq!((demand.volumes, demand.is_patient, demand.timeout_ms), (100, true, 7));
    }
}
