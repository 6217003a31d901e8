//! Lines of the log besides the audit's. A macro of `tracing` is compiled to a few hundred bytes at
//! each use, so there are two.

use std::fmt::Arguments;

/// Something did not work out that the caller is not told, or not all of.
#[cold]
#[inline(never)]
pub(crate) fn warn(line: Arguments<'_>) {
    tracing::warn!("{line}");
}

/// What a request did besides what was asked for.
#[cold]
#[inline(never)]
pub(crate) fn info(line: Arguments<'_>) {
    tracing::info!("{line}");
}
