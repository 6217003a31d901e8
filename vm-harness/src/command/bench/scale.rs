//! The growth of cost with the number of volumes that are attached: many volumes are plugged one
//! by one, and unplugged one by one in the reverse order, so that the number of attached volumes is
//! the same for a plug and an unplug of the same place.

use vm_harness::{Error, Volume};

use super::{
    list::List,
    row::{Goal, Row, Series},
    samples::Samples,
    subject::Subject,
};

const GOAL: Goal = Goal::AtMost(1.05);

/// How many volumes, and how many of them are the first and the last ones.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    pub(super) volumes: usize,
    pub(super) window: usize,
    pub(super) passes: usize,
}

/// The time of each whole process: one list for a pass, with as many values as volumes.
#[derive(Default)]
pub(super) struct ScaleTimes {
    pub(super) plugs: Vec<Samples>,
    pub(super) unplugs: Vec<Samples>,
}

pub(super) fn small_volumes(count: usize) -> Vec<Volume> {
    (0..count).map(|_| Volume::image(64 << 10)).collect()
}

pub(super) fn path(index: usize) -> String {
    format!("/dev/volume{index}")
}

impl ScaleTimes {
    /// Measures one pass; `list` is measured while all volumes are attached.
    pub(super) async fn pass(
        &mut self,
        subject: &Subject,
        volumes: &[Volume],
        list: &mut List,
    ) -> Result<(), Error> {
        let mut plugs = Samples::default();
        for (index, volume) in volumes.iter().enumerate() {
            let path = path(index);
            let command = subject.sandbox.hot_plug_command(&subject.container, &[(volume, &path)]);
            plugs.add(subject.call(&command).await.whole);
        }
        list.measure(subject).await?;
        let mut unplugs = Vec::new();
        for index in (0..volumes.len()).rev() {
            let command = subject.unplug_command(&subject.container, &path(index));
            unplugs.push(subject.call(&command).await.whole);
        }
        self.plugs.push(plugs);
        self.unplugs.push(unplugs.into_iter().rev().collect());
        Ok(())
    }

    pub(super) fn rows(&self, scale: Scale) -> Vec<Row> {
        let Scale { volumes, window, .. } = scale;
        let row = |name: &str, passes: &[Samples]| {
            let [first, last] = [0..window, volumes - window..volumes].map(|range| {
                passes.iter().flat_map(|pass| pass.values()[range.clone()].to_vec()).collect()
            });
            Row::ratio(
                format!("{name}: last {window} of {volumes} / first {window}"),
                Series::times("last", last),
                Series::times("first", first),
            )
            .goal(GOAL)
        };
        vec![row("hot-plug", &self.plugs), row("hot-unplug", &self.unplugs)]
    }
}
