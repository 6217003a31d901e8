//! Attachments that are watched and worked on: a [`Controller`] that knows what it is asked to work
//! on.
//!
//! kube 5.0's own asks for each object of a list as it arrives, and leaves out what is not in its
//! store. But a list goes into the store when it is complete, and one of more than a page (500
//! objects) takes requests in between: of what was created while a watch was broken, some would be
//! left out until they change. Here the work begins when the list is complete.

use futures_util::{Stream, StreamExt as _, stream};
use kube::{
    Api,
    runtime::{
        Controller,
        reflector::{self, Store},
        watcher::{self, Event},
    },
};

use crate::resource::BlockVolumeAttachment;

/// A controller of the attachments in `all` that `config` selects.
pub(crate) fn controller(
    all: Api<BlockVolumeAttachment>,
    config: watcher::Config,
) -> Controller<BlockVolumeAttachment> {
    let (store, writer) = reflector::store();
    let events = reflector::reflector(writer, watcher::watcher(all, config));
    Controller::for_stream(stored(events, store.clone()), store)
}

/// The objects of `events`, each when `store` has it, into which the same events go before.
fn stored(
    events: impl Stream<Item = watcher::Result<Event<BlockVolumeAttachment>>>,
    store: Store<BlockVolumeAttachment>,
) -> impl Stream<Item = watcher::Result<BlockVolumeAttachment>> {
    events.flat_map(move |event| {
        let (one, all) = match event {
            Ok(Event::Apply(one)) => (Some(Ok(one)), Vec::new()),
            Ok(Event::InitDone) => (None, store.state()),
            Ok(Event::Init | Event::InitApply(_) | Event::Delete(_)) => (None, Vec::new()),
            Err(e) => (Some(Err(e)), Vec::new()),
        };
        stream::iter(one).chain(stream::iter(all).map(|one| Ok((*one).clone())))
    })
}

#[cfg(test)]
mod tests {
    use kube::{ResourceExt as _, runtime::reflector::ObjectRef};

    use super::*;
    use crate::sample;

    fn named(name: &str) -> BlockVolumeAttachment {
        let mut one = sample::attachment();
        one.metadata.name = Some(name.to_owned());
        one
    }

    #[tokio::test]
    async fn what_is_listed_is_worked_on_when_it_is_in_the_store() {
        let (store, writer) = reflector::store();
        let (send, events) = channel();
        let events = reflector::reflector(writer, events);
        let mut objects = std::pin::pin!(stored(events, store.clone()));
        let mut next = async || {
            let one = objects.next().await.unwrap().unwrap();
            assert!(store.get(&ObjectRef::from_obj(&one)).is_some());
            one.name_any()
        };
        // The second page of a list is late: until then there is no work.
        for event in [Event::Init, Event::InitApply(named("a"))] {
            send.send(Ok(event)).unwrap();
        }
        let early = tokio::time::timeout(std::time::Duration::from_millis(50), next()).await;
        assert!(early.is_err(), "{early:?}");
        for event in [Event::InitApply(named("b")), Event::InitDone, Event::Apply(named("c"))] {
            send.send(Ok(event)).unwrap();
        }
        let mut listed = [next().await, next().await];
        listed.sort();
        assert_eq!((listed, next().await), (["a".to_owned(), "b".to_owned()], "c".to_owned()));
    }

    type Events = watcher::Result<Event<BlockVolumeAttachment>>;

    fn channel() -> (tokio::sync::mpsc::UnboundedSender<Events>, impl Stream<Item = Events>) {
        let (send, receive) = tokio::sync::mpsc::unbounded_channel();
        let events = stream::unfold(receive, async |mut receive| {
            let event = receive.recv().await?;
            Some((event, receive))
        });
        (send, events)
    }
}
