//! `node status`: what the runtime classes have now.

use std::path::Path;

use super::{Status, configured::Configured, own_directory};
use crate::{
    Error,
    output::{
        envelope::{Envelope, Outcome},
        node_report::NodeReport,
    },
};

pub(super) fn run(root: &Path, verb: &Status) -> Result<Envelope<NodeReport>, Error> {
    let configured = Configured::read(root, &verb.selection)?;
    let runtime_classes = configured.rows();
    let commands = own_directory::commands(&configured);
    let report = NodeReport { runtime_classes, files: Vec::new(), commands };
    Ok(Envelope::new("node status", Outcome::Listed, report))
}
