//! A check's panic as a value, with the place where it was.
//!
//! Checks assert, as tests do. A panic hook is the only one who learns of the place
//! ([`std::panic::set_hook`]); ours keeps what concerns a check and hands everything else on to the
//! hook that was there before.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    pin::pin,
    sync::Once,
    task::Poll,
};

/// Why and where a check ended early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Panic {
    pub(super) message: String,
    /// `file:line`.
    pub(super) place: Option<String>,
}

thread_local! {
    /// Whether this thread is inside of a check.
    static WATCHED: Cell<bool> = const { Cell::new(false) };
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Polls `work` to its end or its panic.
pub(super) async fn caught(work: impl Future<Output = ()>) -> Result<(), Panic> {
    watch();
    let mut work = pin!(work);
    poll_fn(|context| {
        WATCHED.set(true);
        // A check that has panicked is never polled again, and what it borrows is the stage, which
        // goes with it.
        let polled = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context)));
        WATCHED.set(false);
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(())) => Poll::Ready(Ok(())),
            Err(payload) => {
                Poll::Ready(Err(Panic { message: text(payload.as_ref()), place: PLACE.take() }))
            }
        }
    })
    .await
}

fn watch() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let earlier = take_hook();
        set_hook(Box::new(move |info| {
            if !WATCHED.get() {
                return earlier(info);
            }
            let place = info.location().map(|place| format!("{}:{}", place.file(), place.line()));
            PLACE.replace(place);
        }));
    });
}

fn text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_told_with_its_place_and_the_next_check_runs() {
        let panic = caught(async {
            tokio::task::yield_now().await;
            assert_eq!(1, 2, "numbers");
        });
        let panic = panic.await.unwrap_err();
        assert!(
            panic.message.contains("numbers") && panic.message.contains("left: 1"),
            "{panic:?}"
        );
        assert!(panic.place.unwrap().contains("caught.rs:"));
        assert_eq!(caught(async {}).await, Ok(()));
        assert_eq!(caught(async { panic!("plain") }).await.unwrap_err().message, "plain");
    }
}
