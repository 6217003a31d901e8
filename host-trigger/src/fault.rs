//! Named fault points, for tests only. Without the feature `fault` these functions do nothing and
//! compile to nothing.
//!
//! `ECR_RUNTIME_FAULT="name=action[,name=action]"`. Actions: `error`, `delay:MS`, `kill` (the
//! process sends SIGKILL to itself), `stop` (SIGSTOP to itself) and `value:X`.

#[cfg(not(feature = "fault"))]
mod points {
    use crate::Error;

    pub(crate) async fn point(_: &'static str) -> Result<(), Error> {
        Ok(())
    }

    pub(crate) const fn is_set(_: &str) -> bool {
        false
    }

    pub(crate) fn value(_: &str) -> Option<String> {
        None
    }
}

#[cfg(feature = "fault")]
mod points {
    use std::time::Duration;

    use nix::sys::signal::{Signal, raise};

    use crate::Error;

    /// A text that only binaries with fault points contain. A test searches shipped binaries for
    /// it.
    const MARK: &str = "fault points are compiled in";

    fn action(name: &str) -> Option<String> {
        let all = std::env::var("ECR_RUNTIME_FAULT").ok()?;
        all.split(',')
            .find_map(|entry| Some(entry.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
    }

    pub(crate) async fn point(name: &'static str) -> Result<(), Error> {
        let Some(action) = action(name) else { return Ok(()) };
        eprintln!("fault: {name}={action} ({MARK})");
        match action.split_once(':').unwrap_or((&action, "")) {
            ("error", _) => return Err(Error::FaultPoint { point: name }),
            ("kill", _) => raise_or_panic(Signal::SIGKILL),
            ("stop", _) => raise_or_panic(Signal::SIGSTOP),
            ("delay", millis) => {
                let millis = millis.parse().expect("fault: delay takes milliseconds");
                tokio::time::sleep(Duration::from_millis(millis)).await;
            }
            _ => panic!("fault: the action {action} is not known"),
        }
        Ok(())
    }

    /// Whether the point does anything.
    pub(crate) fn is_set(name: &str) -> bool {
        action(name).is_some()
    }

    pub(crate) fn value(name: &str) -> Option<String> {
        Some(action(name)?.strip_prefix("value:")?.to_owned())
    }

    fn raise_or_panic(signal: Signal) {
        raise(signal).expect("fault: a process may signal itself");
    }
}

pub(crate) use points::{is_set, point, value};
