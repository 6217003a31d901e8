//! `check --all`: every sandbox of the node, one after the other.

use std::path::PathBuf;

use super::{Check, check_sandbox};
use crate::{
    Deadline, Error,
    kata::sandbox::{self, Sandbox, Search},
    ops::pod_names::PodNames,
    output::findings::Finding,
    stopwatch::Stopwatch,
};

/// Checks all sandboxes. One that does not respond leaves time for those that follow.
///
/// # Errors
/// The agent's address on the command line is invalid.
pub(super) async fn check(
    verb: &Check,
    run_dir: Option<PathBuf>,
    deadline: Deadline,
    checks: &mut Vec<Finding>,
) -> Result<(), Error> {
    let names = PodNames::default();
    let roots = sandbox::roots(run_dir.as_deref(), verb.target.vmm_user);
    // A directory that cannot be read is a finding already.
    let mut ids = sandbox::all(&roots).unwrap_or_default();
    ids.sort_unstable();
    ids.dedup();
    for (index, id) in ids.iter().enumerate() {
        let left = u32::try_from(ids.len() - index).unwrap_or(u32::MAX);
        let deadline = deadline.within(deadline.remaining() / left);
        let search = verb.target.search(run_dir.clone(), None)?;
        let found = Sandbox::find(&Search { sandbox: Some(id.clone()), ..search });
        let mut its = Vec::new();
        match found {
            Ok(sandbox) => {
                let pod = names.of(id).map(|pod| format!("pod {pod}"));
                its.push(Finding::ok("sandbox", pod.unwrap_or_else(|| id.clone())));
                check_sandbox(None, &sandbox, deadline, &mut its, &mut Stopwatch::new()).await;
            }
            Err(e) => its.push(Finding::problem("sandbox", &e)),
        }
        // It may have ended meanwhile.
        if sandbox::has(&roots, id).unwrap_or(true) {
            checks.extend(its.into_iter().map(|finding| finding.of_sandbox(id)));
        }
    }
    Ok(())
}
