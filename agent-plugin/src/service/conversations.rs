//! The conversations that are under way, and who holds them.
//!
//! A ttrpc server runs the handler of a stream as a task of its own, which goes on when the
//! connection is closed, and the receiver of the stream waits for ever then. The future of a call
//! is dropped. So the caller holds a conversation by a call beside the stream, which has the same
//! number.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::volume::CancelOnDrop;

/// The conversations of which the stream or the Hold has arrived.
#[derive(Debug, Default)]
pub(super) struct Conversations(Mutex<Vec<Entry>>);

#[derive(Debug)]
struct Entry {
    number: u64,
    news: Arc<News>,
    /// Of the stream's request.
    cancel: Option<CancelOnDrop>,
}

#[derive(Debug, Default)]
struct News {
    held: Notify,
    ended: Notify,
}

/// The stream's side, or that of the Hold. When either goes, the request is cancelled, which does
/// nothing to one that has ended.
#[derive(Debug)]
pub(super) struct Side<'a> {
    all: &'a Conversations,
    news: Arc<News>,
}

impl Conversations {
    /// Joins the conversation of a number.
    pub(super) fn join(&self, number: u64) -> Side<'_> {
        let mut all = self.lock();
        let known = all.iter().find(|entry| entry.number == number);
        let news = match known {
            Some(entry) => entry.news.clone(),
            None => {
                let news = Arc::<News>::default();
                all.push(Entry { number, news: news.clone(), cancel: None });
                news
            }
        };
        Side { all: self, news }
    }

    /// Holds the conversation until it has ended, or until the future is dropped.
    pub(super) async fn hold(&self, number: u64) {
        let side = self.join(number);
        side.news.held.notify_one();
        side.news.ended.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Side<'_> {
    /// Waits until the caller holds the conversation. From then on its end cancels the request.
    pub(super) async fn held(&self, cancel: CancelOnDrop) {
        self.with_entry(|entry| entry.cancel = Some(cancel));
        self.news.held.notified().await;
    }

    /// Cancels the request: its caller has ended the stream.
    pub(super) fn cancel(&self) {
        self.with_entry(|entry| entry.cancel = None);
    }

    fn with_entry(&self, change: impl FnOnce(&mut Entry)) {
        let mut all = self.all.lock();
        if let Some(entry) = all.iter_mut().find(|entry| Arc::ptr_eq(&entry.news, &self.news)) {
            change(entry);
        }
    }
}

impl Drop for Side<'_> {
    fn drop(&mut self) {
        self.cancel();
        self.news.ended.notify_one();
        // One more reference than the entry's own is another side.
        let is_last = |entry: &Entry| Arc::strong_count(&entry.news) <= 2;
        self.all.lock().retain(|entry| !Arc::ptr_eq(&entry.news, &self.news) || !is_last(entry));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use super::*;
    use crate::volume::{Announced, Queues};

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    fn announced() -> Announced {
        Arc::<Queues>::default().announce(vec!["a".to_owned()])
    }

    #[test]
    fn a_stream_begins_when_it_is_held_whichever_comes_first() {
        let all = Conversations::default();
        {
            let (mut hold, stream) = (Box::pin(all.hold(7)), all.join(7));
            assert!(poll(hold.as_mut()).is_pending());
            let announced = announced();
            assert!(poll(pin!(stream.held(announced.cancel_on_drop()))).is_ready());
            drop(stream);
            assert!(poll(hold.as_mut()).is_ready());
        }
        {
            let stream = all.join(7);
            let announced = announced();
            let mut held = pin!(stream.held(announced.cancel_on_drop()));
            assert!(poll(held.as_mut()).is_pending());
            assert!(poll(pin!(all.hold(8))).is_pending(), "another conversation");
            assert!(poll(held.as_mut()).is_pending());
            let mut hold = pin!(all.hold(7));
            assert!(poll(hold.as_mut()).is_pending());
            assert!(poll(held.as_mut()).is_ready());
            announced.join().unwrap();
        }
        assert!(all.lock().is_empty());
    }

    #[test]
    fn the_end_of_the_hold_cancels_the_request() {
        let all = Conversations::default();
        let (mut hold, stream, announced) = (Box::pin(all.hold(7)), all.join(7), announced());
        assert!(poll(hold.as_mut()).is_pending());
        assert!(poll(pin!(stream.held(announced.cancel_on_drop()))).is_ready());
        drop(hold);
        announced.join().unwrap_err();
        drop(stream);
        assert!(all.lock().is_empty());
    }

    #[test]
    fn a_hold_that_is_gone_before_its_stream_holds_nothing() {
        let all = Conversations::default();
        let mut hold = Box::pin(all.hold(7));
        assert!(poll(hold.as_mut()).is_pending());
        drop(hold);
        let (stream, announced) = (all.join(7), announced());
        assert!(poll(pin!(stream.held(announced.cancel_on_drop()))).is_pending());
    }
}
