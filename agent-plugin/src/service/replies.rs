//! What the thread of a request hands to the task that serves its caller. `tokio` compiles its
//! channels once more for each type that is sent.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

/// A reply, encoded.
#[derive(Debug)]
pub(super) enum Reply {
    /// Another one follows.
    Step(Vec<u8>),
    /// `None`: nothing is left to say.
    Last(Option<Vec<u8>>),
    /// The thread has ended without a last one.
    Panicked,
}

/// The replies that were not sent yet.
#[derive(Debug, Default)]
pub(super) struct Replies {
    waiting: Mutex<Vec<Reply>>,
    news: Notify,
}

impl Replies {
    pub(super) fn push(&self, reply: Reply) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(reply);
        self.news.notify_one();
    }

    /// Waits for the next reply.
    pub(super) async fn next(&self) -> Reply {
        loop {
            if let Some(reply) = self.take() {
                return reply;
            }
            // One that comes now is not missed: it leaves a permit.
            self.news.notified().await;
        }
    }

    fn take(&self) -> Option<Reply> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        (!waiting.is_empty()).then(|| waiting.remove(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn replies_keep_their_order_and_end_a_wait() {
        let replies = std::sync::Arc::<Replies>::default();
        let others = replies.clone();
        let waiting = tokio::spawn(async move { others.next().await });
        tokio::task::yield_now().await;
        replies.push(Reply::Step(vec![1]));
        assert!(matches!(waiting.await.unwrap(), Reply::Step(bytes) if bytes == [1]));
        replies.push(Reply::Step(vec![2]));
        replies.push(Reply::Last(None));
        assert!(matches!(replies.next().await, Reply::Step(bytes) if bytes == [2]));
        assert!(matches!(replies.next().await, Reply::Last(None)));
    }
}
