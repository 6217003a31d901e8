//! Named fail points, for tests: the Cargo feature `fault` compiles them in, without it every function here is empty.
//!
//! The file `/run/ecr-fault` holds one `name=action` a line and is read at each point. Actions: `error`, `delay:MS`, `wait`
//! (until the line is gone from the file), `panic`, and `skip` or `value:X` where a point says so.

use crate::error::Result;

#[cfg(feature = "fault")]
mod active {
    use std::{fs, thread, time::Duration};

    use crate::error::{Error, Result};

    const FILE: &str = "/run/ecr-fault";

    pub(crate) fn action(point: &str) -> Option<String> {
        let text = fs::read_to_string(FILE).ok()?;
        text.lines().find_map(|line| line.strip_prefix(point)?.strip_prefix('=').map(str::to_owned))
    }

    pub(crate) fn act(point: &str) -> Result<()> {
        let Some(action) = action(point) else { return Ok(()) };
        tracing::warn!("fail point {point}={action}");
        match action.split_once(':').unwrap_or((&action, "")) {
            ("error", _) => return Err(Error::Fault { point: point.to_owned() }),
            ("panic", _) => panic!("fault injected at {point}"),
            ("delay", millis) => thread::sleep(Duration::from_millis(millis.parse().unwrap_or(0))),
            ("wait", _) => {
                while action_is_wait(point) {
                    thread::sleep(Duration::from_millis(2));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn action_is_wait(point: &str) -> bool {
        action(point).as_deref() == Some("wait")
    }
}

/// The point behind a stage: `attach-after-scan`.
#[cfg(feature = "fault")]
pub(crate) fn after(operation: &str, stage: &str) -> Result<()> {
    active::act(&format!("{operation}-after-{stage}"))
}

/// Nothing.
#[cfg(not(feature = "fault"))]
#[inline(always)]
pub(crate) fn after(_operation: &str, _stage: &str) -> Result<()> {
    Ok(())
}

/// Whether a test wants this step left out.
pub(crate) fn skips(_point: &str) -> bool {
    #[cfg(feature = "fault")]
    return active::action(_point).as_deref() == Some("skip");
    #[cfg(not(feature = "fault"))]
    false
}

/// A number that a test wants in place of the ordinary one.
pub(crate) fn value(_point: &str) -> Option<usize> {
    #[cfg(feature = "fault")]
    return active::action(_point)?.strip_prefix("value:")?.parse().ok();
    #[cfg(not(feature = "fault"))]
    None
}

/// Says in the log that this is no build to ship.
pub(crate) fn announce() {
    #[cfg(feature = "fault")]
    tracing::warn!("fault points are compiled in");
}
