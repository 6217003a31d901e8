//! What has to be known before a file system is mounted: that the plugin in the guest can, and that
//! the path can be its mount point.

use block_volume_api::block_volume::{NodeWay, PathState, PathUse, Reason};

use super::{preflight::mismatch, request::PlugRequest};
use crate::{
    Deadline, Error,
    kata::agent::{self, Agent},
    ops::session::PROBE_TIMEOUT,
};

/// Checks that the plugin can mount file systems, if any is requested. One that cannot does not
/// know the request, and would take it for another one.
///
/// # Errors
/// It cannot, or does not reply.
pub(super) async fn check_agent(
    agent: &Agent,
    request: &PlugRequest,
    deadline: Deadline,
) -> Result<(), Error> {
    let Some(path) = request.paths(true).into_iter().next() else { return Ok(()) };
    let found = agent.probe("", Vec::new(), Vec::new(), deadline.capped(PROBE_TIMEOUT)).await?;
    match agent::can_mount(&found) {
        true => Ok(()),
        false => Err(Error::NoMounts { path }),
    }
}

/// Checks whether a file system can be mounted at the path of this `state`, as far as the guest
/// knows.
///
/// # Errors
/// It cannot.
pub(super) fn check_path(state: &PathState) -> Result<(), Error> {
    let PathState { path, taken_by, refused, .. } = state;
    let refuse = |reason, message: String| Err(Error::guest(reason, message));
    match state.use_.enum_value() {
        Ok(PathUse::PATH_USE_TAKEN) => {
            Err(Error::PathTaken { path: path.clone(), taken_by: taken_by.clone() })
        }
        Ok(PathUse::PATH_USE_FREE | PathUse::PATH_USE_PARENT_MISSING) if !refused.is_empty() => {
            refuse(Reason::REASON_UNSUPPORTED, refused.clone())
        }
        Ok(PathUse::PATH_USE_PARENT_MISSING) if state.read_only => refuse(
            Reason::REASON_READ_ONLY_FILE_SYSTEM,
            format!("the directory {path} cannot be made: its file system is read-only"),
        ),
        Ok(PathUse::PATH_USE_PARENT_MISSING) if !is_made(state) => refuse(
            Reason::REASON_PARENT_MISSING,
            format!(
                "{path} cannot be made: a part of it is a file, or a link that leads nowhere or \
                 out of the container"
            ),
        ),
        Ok(PathUse::PATH_USE_FREE | PathUse::PATH_USE_PARENT_MISSING) => Ok(()),
        Ok(PathUse::PATH_USE_UNSPECIFIED) | Err(_) => Err(mismatch("an unknown use of a path")),
    }
}

/// Whether the guest would make the directory.
fn is_made(state: &PathState) -> bool {
    state.way.enum_value() == Ok(NodeWay::NODE_WAY_MOUNT)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const FREE: PathUse = PathUse::PATH_USE_FREE;
    const MISSING: PathUse = PathUse::PATH_USE_PARENT_MISSING;

    fn checked(usage: PathUse, state: PathState) -> &'static str {
        let state = PathState { path: "/data".into(), use_: usage.into(), ..state };
        check_path(&state).err().map_or("ok", |error| error.class().reason)
    }

    #[rstest]
    #[case(FREE, false, "", "ok")]
    #[case(FREE, true, "", "ok")]
    #[case(FREE, false, "Linux is too old", "unsupported")]
    #[case(MISSING, false, "", "ok")]
    #[case(MISSING, true, "", "read_only_file_system")]
    #[case(MISSING, false, "no", "unsupported")]
    #[case(PathUse::PATH_USE_TAKEN, false, "", "path_taken")]
    #[case(PathUse::PATH_USE_UNSPECIFIED, false, "", "agent_answer")]
    fn a_mount_point_exists_or_can_be_made(
        #[case] usage: PathUse,
        #[case] read_only: bool,
        #[case] refused: &str,
        #[case] outcome: &str,
    ) {
        let (way, refused) = (NodeWay::NODE_WAY_MOUNT.into(), refused.to_owned());
        let state = PathState { way, read_only, refused, ..Default::default() };
        assert_eq!(checked(usage, state), outcome);
    }

    #[test]
    fn a_directory_that_the_guest_would_not_make_is_missing() {
        assert_eq!(checked(MISSING, PathState::default()), "parent_missing");
    }
}
