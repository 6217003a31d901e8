//! The report of a hot-plug.

use super::{plug::Plug, volume::PlugVolume};
use crate::{
    Error,
    ops::{
        place::Place,
        volume::{Scsi, Volume},
    },
    output::{
        envelope::{Envelope, Outcome},
        report::Report,
    },
};

impl Plug<'_> {
    pub(super) fn report(self) -> Result<Envelope<Report>, Error> {
        let is_unchanged = |volume: &PlugVolume| {
            volume.is_attached()
                && volume.attached.as_ref().is_some_and(|attached| attached.unchanged)
        };
        let result = match self.volumes.iter().all(is_unchanged) {
            true => Outcome::Unchanged,
            false => Outcome::Attached,
        };
        let volumes = self.volumes.iter().map(|volume| {
            let reported = Volume {
                id: volume.id.to_string(),
                sandbox: self.session.sandbox.id.clone(),
                container: volume.intent.container.clone(),
                place: Place::new(&volume.intent),
                source: volume.source.given.clone(),
                source_device: volume.source.device.clone(),
                size: volume.size(),
                read_only: self.request.read_only,
                shared: volume.is_shared(),
                throttle: volume.limits,
                scsi: Scsi {
                    controller: volume.controller.id.clone(),
                    target: volume.address.target,
                    lun: volume.address.lun,
                },
                ..Volume::default()
            };
            match &volume.attached {
                Some(attached) => reported.with_commit(volume.new_commit(attached)),
                None => reported,
            }
        });
        let report = Report::of(volumes.collect());
        let watch = self.session.watch;
        Ok(Envelope::new("hot-plug", result, report)
            .with_dry_run(self.verb.dry_run)
            .with_timings(watch))
    }
}
