//! The loopback interface, by rtnetlink
//! ([`rtnetlink(7)`](https://man7.org/linux/man-pages/man7/rtnetlink.7.html)).

use rtnetlink::LinkUnspec;

use crate::error::{Error, at};

/// The kernel creates `lo` first, so it has the same index in every network namespace.
const LOOPBACK_INDEX: u32 = 1;

/// Brings `lo` up. The tokio runtime that rtnetlink needs, and its descriptors, are dropped on
/// return.
pub(crate) fn bring_loopback_up() -> Result<(), Error> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(at("tokio"))?;
    runtime.block_on(async {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(at("rtnetlink socket"))?;
        let connection = tokio::spawn(connection);
        let up = LinkUnspec::new_with_index(LOOPBACK_INDEX).up().build();
        let outcome = handle.link().set(up).execute().await;
        connection.abort();
        Ok(outcome?)
    })
}
