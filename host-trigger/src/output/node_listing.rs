//! What `list --all` prints for people: the volumes of every sandbox of the node.

use super::{
    listing::{self, ListedSandbox, Listing, SHORT_ID},
    table,
};
use crate::sanitize::sanitize;

/// The table: a row for each volume, and one for each sandbox that has none; then what could not be
/// told.
pub(super) fn table(listing: &Listing) -> String {
    let mut rows = Vec::new();
    for sandbox in &listing.sandboxes {
        let its = listing.volumes.iter().filter(|listed| listed.volume.sandbox == sandbox.id);
        let mut its = listing::rows(its).into_iter();
        let head = its.next().map(|head| with_sandbox("SANDBOX", head));
        if rows.is_empty() {
            rows.extend(head);
        }
        let id: String = sanitize(&sandbox.id).chars().take(SHORT_ID).collect();
        let before = rows.len();
        rows.extend(its.map(|row| with_sandbox(&id, row)));
        if rows.len() == before {
            rows.push(with_sandbox(&id, without_volumes(sandbox)));
        }
    }
    let mut lines = table::table(rows);
    for ListedSandbox { id, error, guest_error, .. } in &listing.sandboxes {
        lines.extend(error.iter().map(|error| format!("sandbox {id}: {}", error.message)));
        let unasked = guest_error.iter();
        lines.extend(
            unasked
                .map(|error| format!("sandbox {id}: the guest was not asked: {}", error.message)),
        );
    }
    lines.extend(listing::guest_errors(listing));
    lines.join("\n")
}

fn with_sandbox(id: &str, row: [String; 9]) -> [String; 10] {
    let mut cells = std::iter::once(id.to_owned()).chain(row);
    std::array::from_fn(|_| cells.next().unwrap_or_default())
}

/// The row of a sandbox of which no volume is listed.
fn without_volumes(sandbox: &ListedSandbox) -> [String; 9] {
    let state = match &sandbox.error {
        None => "no volumes",
        Some(_) => "not known",
    };
    let pod = sandbox.pod.as_ref().map(ToString::to_string).unwrap_or_default();
    let mut row: [String; 9] = Default::default();
    (row[1], row[4]) = (state.to_owned(), pod);
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::ErrorBody,
        ops::volume::{ListedVolume, State},
        pod::PodView,
        sample,
    };

    fn sandbox(id: &str, error: Option<&str>) -> ListedSandbox {
        let error = error.map(|message| ErrorBody {
            reason: "qmp_held".into(),
            exit_code: 13,
            message: message.into(),
            remedy: None,
            holders: Vec::new(),
        });
        let pod = PodView { namespace: "shop".into(), name: id.into(), container: None };
        ListedSandbox { id: id.into(), pod: Some(pod), error, guest_error: None }
    }

    #[test]
    fn every_sandbox_has_a_row_and_an_error_has_a_line() {
        let mut volume = sample::volume();
        let pod =
            PodView { namespace: "shop".into(), name: "s1".into(), container: Some("app".into()) };
        volume.pod = Some(pod);
        let (state, guest, guest_error) = (State::Attached, None, None);
        let listing = Listing {
            volumes: vec![ListedVolume { volume, state, guest, guest_error }],
            guest_error: None,
            sandboxes: vec![sandbox("s0", None), sandbox("s1", None), sandbox("s2", Some("held"))],
        };
        let expected = "\
SANDBOX  VOLUME            STATE       SIZE       CONTAINER  POD          PATH       SOURCE    GUEST  LIMITS
s0       -                 no volumes  -          -          shop/s0      -          -         -      -
s1       0123456789abcdef  attached    64 MiB ro  c1         shop/s1 app  /dev/xvda  /dev/sdb  sda    -
s2       -                 not known   -          -          shop/s2      -          -         -      -
sandbox s2: held";
        assert_eq!(table(&listing), expected);
        let error = listing.unknown().unwrap();
        assert_eq!(
            (error.class().reason, error.class().exit_status.code()),
            ("sandbox_unknown", 15)
        );
        assert!(error.message().contains("of sandbox s2 could"), "{}", error.message());
    }

    #[test]
    fn a_sandbox_of_another_hypervisor_has_no_volumes_and_is_no_error() {
        let mut other = sandbox("s1", Some("run by clh"));
        other.error.as_mut().unwrap().reason = "not_qemu".into();
        let listing = Listing { sandboxes: vec![other], ..Listing::default() };
        assert!(listing.unknown().is_none());
        assert!(table(&listing).ends_with("\nsandbox s1: run by clh"));
    }
}
