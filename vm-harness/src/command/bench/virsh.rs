//! The whole process beside `virsh attach-disk` and `detach-disk`, alternating on one QEMU. They
//! end at the VM: no disk in the guest, no device node in the container.

use vm_harness::Error;

use super::{
    hot_plug::HotPlug,
    row::{Goal, Row, Series},
    samples::Samples,
    subject::Subject,
};

const PLUG: Goal = Goal::AtMost(1.0);
const UNPLUG: Goal = Goal::AtMost(1.05);
/// The disk's name in the domain: libvirt derives its address from it (target 0, LUN 1).
pub(super) const TARGET: &str = "sdb";

/// The times of both commands.
#[derive(Default)]
pub(super) struct VirshRounds {
    pub(super) attach: Samples,
    pub(super) detach: Samples,
}

impl VirshRounds {
    pub(super) async fn round(&mut self, subject: &Subject) -> Result<(), Error> {
        let Some(virsh) = &subject.virsh else { return Ok(()) };
        self.attach.add(virsh.attach(subject.volume.name(), TARGET).await?);
        self.detach.add(virsh.detach(TARGET).await?);
        Ok(())
    }

    /// Returns the rows; none if there is no `virsh`.
    pub(super) fn rows(&self, ours: &HotPlug) -> Vec<Row> {
        if self.attach.is_empty() {
            return Vec::new();
        }
        let row = |ours: &str, times: &Samples, theirs: &str, beside: &Samples| {
            Row::ratio(
                format!("{ours}, the whole process / {theirs}"),
                Series::times(ours, times.clone()),
                Series::times(theirs, beside.clone()),
            )
        };
        vec![
            row("hot-plug", &ours.plug.whole, "virsh attach-disk", &self.attach).goal(PLUG),
            row("hot-unplug", &ours.unplug.whole, "virsh detach-disk", &self.detach).goal(UNPLUG),
        ]
    }
}
