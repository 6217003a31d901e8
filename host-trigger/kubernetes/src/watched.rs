//! Objects that are watched: a store that has them all, and a stream that says which have changed.
//!
//! kube 5.0's own controllers ask for each object of a list as it arrives. But a list goes into the
//! store when it is complete, and one of more than a page (500 objects) takes requests in between:
//! what was decided by the store then would be decided by what was there before the list, and what
//! went away while the watch was broken would never be asked for. Here the stream has the objects
//! of a list when the store has them, together with those that are not in it any more.

use std::sync::Arc;

use futures_util::{Stream, StreamExt as _, stream};
use kube::runtime::{
    reflector::{self, ObjectRef, Store},
    watcher::{self, Event},
};
use tracing::debug;

/// What can be watched.
pub(crate) trait Object:
    kube::Resource<DynamicType = ()> + Clone + Send + Sync + 'static
{
}

impl<K: kube::Resource<DynamicType = ()> + Clone + Send + Sync + 'static> Object for K {}

/// The store of what `events` bring, and the objects that are new, have changed or have gone, each
/// when the store has it so. It is filled for as long as the stream is polled.
pub(crate) fn watched<K: Object>(
    events: impl Stream<Item = watcher::Result<Event<K>>>,
) -> (Store<K>, impl Stream<Item = K>) {
    let (store, writer) = reflector::store();
    let changes = changes(reflector::reflector(writer, events), store.clone());
    (store, changes)
}

fn changes<K: Object>(
    stored: impl Stream<Item = watcher::Result<Event<K>>>,
    store: Store<K>,
) -> impl Stream<Item = K> {
    let mut before = Vec::new();
    stored.flat_map(move |event| {
        let (one, listed) = match event {
            Ok(Event::Apply(one) | Event::Delete(one)) => (Some(one), Vec::new()),
            Ok(Event::Init) => {
                before = store.state();
                (None, Vec::new())
            }
            Ok(Event::InitDone) => (None, with_those_gone(&store, std::mem::take(&mut before))),
            Ok(Event::InitApply(_)) => (None, Vec::new()),
            Err(e) => {
                debug!(kind = %K::kind(&()), "the watch begins again: {e}");
                (None, Vec::new())
            }
        };
        let listed = listed.into_iter().map(|one| (*one).clone());
        stream::iter(one.into_iter().chain(listed))
    })
}

/// Everything in `store`, and what was there `before` and is not any more.
fn with_those_gone<K: Object>(store: &Store<K>, before: Vec<Arc<K>>) -> Vec<Arc<K>> {
    let is_gone = |one: &Arc<K>| store.get(&ObjectRef::from_obj(&**one)).is_none();
    let mut all = store.state();
    all.extend(before.into_iter().filter(is_gone));
    all
}

#[cfg(test)]
mod tests {
    use std::{pin::Pin, time::Duration};

    use kube::ResourceExt as _;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;
    use crate::{resource::BlockVolumeAttachment, sample};

    type Sent = watcher::Result<Event<BlockVolumeAttachment>>;
    type Changes<'a> = Pin<&'a mut dyn Stream<Item = BlockVolumeAttachment>>;

    fn named(name: &str) -> BlockVolumeAttachment {
        let mut one = sample::attachment();
        one.metadata.name = Some(name.to_owned());
        one
    }

    fn stream(mut events: UnboundedReceiver<Sent>) -> impl Stream<Item = Sent> {
        stream::poll_fn(move |context| events.poll_recv(context))
    }

    /// The names of the next changes, in order of the alphabet.
    async fn next<const N: usize>(changes: &mut Changes<'_>) -> [String; N] {
        let mut names = [const { String::new() }; N];
        for name in &mut names {
            *name = changes.next().await.unwrap().name_any();
        }
        names.sort();
        names
    }

    async fn nothing_comes(changes: &mut Changes<'_>) {
        let early = tokio::time::timeout(Duration::from_millis(50), changes.next()).await;
        assert!(early.is_err(), "{early:?}");
    }

    #[tokio::test]
    async fn what_is_listed_comes_when_the_store_has_it() {
        let (sender, events) = unbounded_channel();
        let (store, changes) = watched(stream(events));
        let mut changes: Changes<'_> = std::pin::pin!(changes);
        let send = |event| sender.send(Ok(event)).unwrap();
        let has = |name| store.get(&ObjectRef::from_obj(&named(name))).is_some();
        // The second page of a list is late: until then there is no work.
        [Event::Init, Event::InitApply(named("a"))].into_iter().for_each(send);
        nothing_comes(&mut changes).await;
        [Event::InitApply(named("b")), Event::InitDone].into_iter().for_each(send);
        assert_eq!(next(&mut changes).await, ["a", "b"]);
        assert!(has("a") && has("b"));
        send(Event::Apply(named("c")));
        assert_eq!(next(&mut changes).await, ["c"]);
        assert!(has("c"));
        send(Event::Delete(named("a")));
        assert_eq!(next(&mut changes).await, ["a"]);
        assert!(!has("a"));
    }

    #[tokio::test]
    async fn what_went_while_the_watch_was_broken_comes_with_the_next_list() {
        let (sender, events) = unbounded_channel();
        let (store, changes) = watched(stream(events));
        let mut changes: Changes<'_> = std::pin::pin!(changes);
        let send = |event| sender.send(event).unwrap();
        [Event::Init, Event::InitApply(named("a")), Event::InitApply(named("b")), Event::InitDone]
            .map(Ok)
            .into_iter()
            .for_each(send);
        assert_eq!(next(&mut changes).await, ["a", "b"]);
        send(Err(watcher::Error::NoResourceVersion));
        send(Ok(Event::Init));
        send(Ok(Event::InitApply(named("b"))));
        nothing_comes(&mut changes).await;
        assert!(store.get(&ObjectRef::from_obj(&named("a"))).is_some());
        send(Ok(Event::InitDone));
        assert_eq!(next(&mut changes).await, ["a", "b"]);
        assert!(store.get(&ObjectRef::from_obj(&named("a"))).is_none());
    }

    #[tokio::test]
    async fn a_list_that_breaks_off_hides_nothing_that_is_gone() {
        let (sender, events) = unbounded_channel();
        let (store, changes) = watched(stream(events));
        let mut changes: Changes<'_> = std::pin::pin!(changes);
        let lists = [
            vec![Event::Init, Event::InitApply(named("a")), Event::InitDone],
            vec![Event::Init, Event::InitApply(named("b"))],
            vec![Event::Init, Event::InitApply(named("c")), Event::InitDone],
        ];
        for event in lists.into_iter().flatten() {
            sender.send(Ok(event)).unwrap();
        }
        assert_eq!(next(&mut changes).await, ["a"]);
        assert_eq!(next(&mut changes).await, ["a", "c"]);
        assert_eq!(store.len(), 1);
    }
}
