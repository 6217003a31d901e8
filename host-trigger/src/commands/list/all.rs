//! `list --all`: every sandbox of the node. One that cannot be asked is listed with its error, and
//! the others go on.

use std::path::PathBuf;

use futures_util::{StreamExt, stream};

use super::List;
use crate::{
    Deadline, Error,
    cri::Endpoint,
    error::ErrorBody,
    kata::sandbox::{self, Sandbox, Search},
    ops::{
        inspect,
        pod_names::PodNames,
        select,
        session::{Session, SessionOptions},
        signals::Signals,
        volume::ListedVolume,
    },
    output::{
        envelope::{Envelope, Outcome},
        listing::{ListedSandbox, Listing},
        pods::NamePods,
    },
    qemu::inventory::Inventory,
    stopwatch::Stopwatch,
};

/// How many sandboxes are asked at a time: each needs a few descriptors.
const AT_A_TIME: usize = 4;

/// Lists the volumes of all sandboxes.
///
/// # Errors
/// A state directory cannot be read, a signal arrived, or the engine that was named does not tell
/// the pods.
pub(super) async fn run(verb: &List, run_dir: Option<PathBuf>) -> Result<Envelope<Listing>, Error> {
    let (mut watch, deadline) = (Stopwatch::new(), Deadline::of_command(verb.target.timeout));
    let mut signals = Signals::catch()?;
    let roots = sandbox::roots(run_dir.as_deref(), verb.target.vmm_user);
    let mut ids = sandbox::all(&roots)?;
    ids.sort_unstable();
    ids.dedup();
    watch.lap("find");
    let all = async {
        let count = ids.len();
        let asked = stream::iter(ids.into_iter().enumerate()).map(|(index, id)| {
            let search = Search {
                run_dir: run_dir.clone(),
                sandbox: Some(id),
                vmm_user: verb.target.vmm_user,
                ..Search::default()
            };
            ask(search, deadline, (count - index).div_ceil(AT_A_TIME), verb.target.verbose)
        });
        let asked: Vec<_> = asked.buffered(AT_A_TIME).collect().await;
        watch.lap("sandboxes");
        let mut listing = Listing::default();
        for (id, asked) in asked {
            let (mut volumes, guest_error, error) = match asked {
                Ok((volumes, guest_error)) => (volumes, guest_error, None),
                Err(interrupted @ Error::Interrupted { .. }) => return Err(interrupted),
                // It ended meanwhile.
                Err(_) if !sandbox::has(&roots, &id)? => continue,
                Err(e) => (Vec::new(), None, Some(ErrorBody::from(&e))),
            };
            listing.volumes.append(&mut volumes);
            listing.sandboxes.push(ListedSandbox { id, pod: None, error, guest_error });
        }
        name_pods(verb, &mut listing, deadline).await?;
        watch.lap("pods");
        Ok(listing)
    };
    let listing = signals.unless_caught(all).await?;
    let unknown = listing.unknown();
    let envelope = Envelope::new("list", Outcome::Listed, listing);
    Ok(envelope.with_error(unknown.as_ref()).with_timings(watch))
}

/// Lists the volumes of one sandbox, of which as many as `turns` are still to be asked one after
/// the other: one that does not respond leaves time for them.
async fn ask(
    search: Search,
    deadline: Deadline,
    turns: usize,
    verbose: bool,
) -> (String, Result<(Vec<ListedVolume>, Option<ErrorBody>), Error>) {
    let id = search.sandbox.clone().unwrap_or_default();
    let turns = u32::try_from(turns).unwrap_or(u32::MAX).max(1);
    let deadline = deadline.within(deadline.remaining() / turns);
    let options = SessionOptions { search, deadline, watch: Stopwatch::new(), verbose };
    let asked = async {
        let (mut session, mut signals) = Session::open(options).await?;
        let choose =
            |sandbox: &Sandbox, inventory: &Inventory| select::all(None, sandbox, inventory);
        signals.unless_caught(inspect::inspect_volumes(&mut session, choose, false)).await
    };
    (id, asked.await)
}

/// Adds the names of the pods: those that the engine tells if one is named, otherwise those of the
/// bundles, and only if these lack one, those of an engine that can be found.
async fn name_pods(verb: &List, listing: &mut Listing, deadline: Deadline) -> Result<(), Error> {
    if let Some(cri) = &verb.target.cri {
        let endpoint = Endpoint::find(Some(cri))?;
        listing.name_pods(&PodNames::ask(&endpoint, deadline).await?);
        return Ok(());
    }
    listing.name_pods(&PodNames::default());
    if listing.sandboxes.iter().any(|sandbox| sandbox.pod.is_none())
        && let Ok(endpoint) = Endpoint::find(None)
        && let Ok(names) = PodNames::ask(&endpoint, deadline).await
    {
        listing.name_pods(&names);
    }
    Ok(())
}
