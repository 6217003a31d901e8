//! Turns the panic of a check or a scenario into a value, with its location.
//!
//! Checks assert, as tests do. Only a panic hook gets the location of a panic
//! ([`std::panic::set_hook`]). The hook of this module keeps the location of a check's panic, and
//! passes every other panic to the hook that was set before.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    pin::pin,
    sync::Once,
    task::Poll,
};

/// Message and location of a panic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Panic {
    pub(crate) message: String,
    /// `file:line`.
    pub(crate) location: Option<String>,
}

thread_local! {
    /// Whether this thread is polling a check.
    static IN_CHECK: Cell<bool> = const { Cell::new(false) };
    static LOCATION: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Polls `work` until it completes or panics.
pub(crate) async fn catch_panic<T>(work: impl Future<Output = T>) -> Result<T, Panic> {
    install_hook();
    let mut work = pin!(work);
    poll_fn(|context| {
        IN_CHECK.set(true);
        // A check that panicked is never polled again. It borrows only the fixture, which is
        // dropped after a failure.
        let polled = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context)));
        IN_CHECK.set(false);
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(result)) => Poll::Ready(Ok(result)),
            Err(payload) => {
                let message = message_of(payload.as_ref());
                Poll::Ready(Err(Panic { message, location: LOCATION.take() }))
            }
        }
    })
    .await
}

fn install_hook() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let earlier = take_hook();
        set_hook(Box::new(move |info| {
            if !IN_CHECK.get() {
                return earlier(info);
            }
            let location = info.location();
            LOCATION.replace(location.map(|at| format!("{}:{}", at.file(), at.line())));
        }));
    });
}

fn message_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn panic_is_returned_with_its_location_and_the_next_check_runs() {
        let panic = catch_panic(async {
            tokio::task::yield_now().await;
            assert_eq!(1, 2, "numbers");
        });
        let panic = panic.await.unwrap_err();
        assert!(
            panic.message.contains("numbers") && panic.message.contains("left: 1"),
            "{panic:?}"
        );
        assert!(panic.location.unwrap().contains("panic_capture.rs:"));
        assert_eq!(catch_panic(async {}).await, Ok(()));
        assert_eq!(catch_panic(async { panic!("plain") }).await.unwrap_err().message, "plain");
    }
}
