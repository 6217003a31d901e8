//! Named fault points, for tests: the Cargo feature `fault` compiles them in; without it every
//! function here does nothing.
//!
//! The file `/run/ecr-fault` has one `name=action` per line, and is read at each point; a point
//! that is not in the file may be on the kernel's command line: `block_volume.fault=name=action`.
//! Actions: `error`, `delay:MS`, `wait` (until the line is removed from the file), `stay` (for
//! ever), `panic`, and at the points below `skip`, `value:X`, or another word:
//!
//! | point | what happens |
//! |---|---|
//! | `OPERATION-after-STAGE` | `error`, `delay`, `wait`, `stay` or `panic`, when that stage has ended. A Plug is an `attach` with the further stages `ready`, `go`, `prepared`, `attached`, `commit`; after `commit` an error does nothing. A detach of a mount has the further stages `sync` and `unmount`, a resize of one `grow` |
//! | `detach-after-released` | the same, but for `error`: the caller was told that it may remove the disks |
//! | `tree=wait` | the container's file system does not answer when a path is resolved |
//! | `scan=skip`, `rescan=skip` | the kernel is not asked to scan |
//! | `uevent=lost` | the kernel's events do not arrive, without an error |
//! | `uevent=overflow` | instead of each event the kernel reports lost events (ENOBUFS) |
//! | `uevent-receive-buffer=value:BYTES` | the size of the receive buffer: the kernel drops what does not fit |
//! | `clock=value:MS` | so much more time has passed, as on a machine without free CPU time |
//!
//! A point that always skips a step makes an agent with one defect, which the conformance suite has
//! to detect: `address`, `scan`, `scan-one`, `serial`, `namespace`, `node`, `owner`,
//! `filter`, `undo`, `unlink`, `unchanged`, `deadline`, of mounts `mount`, `nodev`, `private`,
//! `unmount`, `read-only`, `files`, `write-back`, `tidy`, `magic` and `idmap` (each with `skip`),
//! and `mount=guest`, `thread=stay`.

use crate::error::Result;

#[cfg(feature = "fault")]
mod active {
    use std::{fs, thread, time::Duration};

    use crate::error::{Error, Result};

    const FILE: &str = "/run/ecr-fault";
    const COMMAND_LINE: &str = "/proc/cmdline";
    const PARAMETER: &str = "block_volume.fault=";

    pub(crate) fn action(point: &str) -> Option<String> {
        let read = |path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        named(read(FILE).lines(), point).or_else(|| {
            named(
                read(COMMAND_LINE).split(' ').filter_map(|word| word.strip_prefix(PARAMETER)),
                point,
            )
        })
    }

    pub(super) fn named<'a>(
        mut lines: impl Iterator<Item = &'a str>,
        point: &str,
    ) -> Option<String> {
        lines.find_map(|line| {
            line.trim_end().strip_prefix(point)?.strip_prefix('=').map(str::to_owned)
        })
    }

    pub(crate) fn act(point: &str) -> Result<()> {
        let Some(action) = action(point) else { return Ok(()) };
        tracing::warn!("fault point {point}={action}");
        match action.split_once(':').unwrap_or((&action, "")) {
            ("error", _) => return Err(Error::Fault { point: point.to_owned() }.into()),
            ("panic", _) => panic!("fault injected at {point}"),
            ("delay", millis) => thread::sleep(Duration::from_millis(millis.parse().unwrap_or(0))),
            ("stay", _) => loop {
                thread::park();
            },
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

/// Runs the fault point behind a stage: `attach-after-scan`.
#[cfg(feature = "fault")]
pub(crate) fn after(operation: &str, stage: &str) -> Result<()> {
    active::act(&format!("{operation}-after-{stage}"))
}

/// Runs a fault point that does not belong to a stage.
pub(crate) fn at(_point: &str) {
    // Only a stage can fail.
    #[cfg(feature = "fault")]
    let _ = active::act(_point);
}

/// Does nothing.
#[cfg(not(feature = "fault"))]
#[inline(always)]
pub(crate) fn after(_operation: &str, _stage: &str) -> Result<()> {
    Ok(())
}

/// Whether a test skips this step.
pub(crate) fn skips(point: &str) -> bool {
    wants(point, "skip")
}

/// Whether a test sets this action.
pub(crate) fn wants(_point: &str, _action: &str) -> bool {
    #[cfg(feature = "fault")]
    return active::action(_point).as_deref() == Some(_action);
    #[cfg(not(feature = "fault"))]
    false
}

/// The time, which a test may advance.
pub(crate) fn now() -> std::time::Instant {
    let unseen = value("clock").and_then(|millis| u64::try_from(millis).ok()).unwrap_or_default();
    std::time::Instant::now() + std::time::Duration::from_millis(unseen)
}

/// A number that a test sets instead of the usual one.
pub(crate) fn value(_point: &str) -> Option<usize> {
    #[cfg(feature = "fault")]
    return active::action(_point)?.strip_prefix("value:")?.parse().ok();
    #[cfg(not(feature = "fault"))]
    None
}

/// Logs that this is a test build.
pub(crate) fn announce() {
    #[cfg(feature = "fault")]
    tracing::warn!("fault points are compiled in");
}

#[cfg(all(test, feature = "fault"))]
mod tests {
    use super::active::named;

    #[test]
    fn a_point_is_found_by_its_whole_name() {
        let lines = ["scan-one=skip", "attach-after-scan=delay:5 "];
        let find = |point| named(lines.into_iter(), point);
        assert_eq!(find("attach-after-scan").as_deref(), Some("delay:5"));
        assert_eq!(find("scan-one").as_deref(), Some("skip"));
        assert_eq!((find("scan"), find("one")), (None, None));
    }
}
