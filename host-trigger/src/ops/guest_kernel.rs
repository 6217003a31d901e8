//! What the guest's kernel lacks, as the guest found by trying.

use block_volume_api::{
    KernelCapability, Without,
    block_volume::{KernelState, ProbeResponse, Reason},
};

use crate::{Error, sanitize::sanitize};

/// A guest has no reason to report more.
const MOST: usize = 64;

/// A capability that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missing {
    /// Its name.
    pub(crate) name: String,
    /// What is known of it; `None` for one of a later version of the plugin.
    pub(crate) known: Option<&'static KernelCapability>,
}

impl Missing {
    /// What is lost without it.
    pub(crate) fn message(&self) -> String {
        match self.known {
            Some(KernelCapability { name, option, lost, .. }) => {
                format!("the guest's kernel has no {name} ({option}): {lost}")
            }
            None => format!(
                "the guest's kernel has no {}, which this version does not know",
                sanitize(&self.name)
            ),
        }
    }

    /// What to do about it.
    pub(crate) fn remedy(&self) -> String {
        match self.known {
            Some(capability) => format!("give the guest {}", capability.option),
            None => "see the documentation of the plugin in the guest".to_owned(),
        }
    }

    /// The error of a hot-plug that needs it, if each one does.
    pub(crate) fn error(&self) -> Option<Error> {
        let is_needed = self.known.is_some_and(|known| known.without == Without::NoVolumes);
        let reason = Reason::REASON_UNSUPPORTED;
        is_needed.then(|| Error::guest(reason, self.message()))
    }
}

/// Returns the missing capabilities of a guest's kernel.
pub(crate) fn missing(kernel: &KernelState) -> impl Iterator<Item = Missing> {
    kernel
        .missing
        .iter()
        .take(MOST)
        .map(|name| Missing { name: name.clone(), known: KernelCapability::named(name) })
}

/// Checks whether the guest's kernel has what every volume needs. A plugin that does not report it
/// is asked to attach all the same.
///
/// # Errors
/// It lacks something.
pub(crate) fn check(probe: &ProbeResponse) -> Result<(), Error> {
    let needed = probe.kernel.as_ref().and_then(|kernel| missing(kernel).find_map(|of| of.error()));
    needed.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(missing: &[&str]) -> ProbeResponse {
        let missing = missing.iter().map(|name| (*name).to_owned()).collect();
        let kernel = KernelState { missing, ..Default::default() };
        ProbeResponse { kernel: Some(kernel).into(), ..Default::default() }
    }

    #[test]
    fn only_what_every_volume_needs_is_an_error() {
        check(&ProbeResponse::default()).unwrap();
        check(&probe(&["mount_setattr", "kcmp", "tele\u{1b}pathy"])).unwrap();
        let error = check(&probe(&["kcmp", "sd"])).unwrap_err();
        assert_eq!(error.class().reason, "unsupported");
        let message = error.message();
        assert!(message.contains("no sd (CONFIG_BLK_DEV_SD): a SCSI device"), "{message}");
    }

    #[test]
    fn an_unknown_capability_is_named_and_escaped() {
        let of = probe(&["tele\u{1b}pathy"]);
        let unknown = missing(&of.kernel).next().unwrap();
        assert!(unknown.message().contains(r"no tele\u{1b}pathy, which"), "{unknown:?}");
        assert_eq!(missing(&probe(&vec!["x"; 1000]).kernel).count(), MOST);
    }
}
