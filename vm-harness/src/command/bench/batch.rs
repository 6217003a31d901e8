//! Many volumes in one command, for each volume.

use vm_harness::Volume;

use super::{
    hot_plug::HotPlug,
    row::{Goal, Row, Series},
    samples::Samples,
    scale::path,
    subject::Subject,
};

const GOAL: Goal = Goal::AtMost(0.7);

/// The times of commands for all volumes at once.
#[derive(Default)]
pub(super) struct Batch(Samples);

impl Batch {
    pub(super) async fn round(&mut self, subject: &Subject, volumes: &[Volume]) {
        let container = &subject.container;
        let paths: Vec<String> = (0..volumes.len()).map(path).collect();
        let pairs: Vec<_> = volumes.iter().zip(paths.iter().map(String::as_str)).collect();
        let plug = subject.sandbox.hot_plug_command(container, &pairs);
        // Emulation is slow.
        self.0.add(subject.call(&plug.args(["--timeout", "5m"])).await.whole);
        for path in &paths {
            subject.call(&subject.unplug_command(container, path)).await;
        }
    }

    pub(super) fn row(&self, volumes: usize, one: &HotPlug) -> Row {
        let ours = self.0.without_time(one.starts.median()).per(volumes);
        Row::ratio(
            format!("hot-plug of {volumes} at once, per volume / floor"),
            Series::times("hot-plug", ours),
            Series::times("floor", one.floor.plug.total.clone()),
        )
        .goal(GOAL)
    }
}
