//! The cost of a hot-plug does not grow with the number of attached volumes, and that of a
//! hot-unplug by no more than QEMU's own lists.
//!
//! Two sandboxes represent the first and the last of 256 volumes: in one the measured ones come
//! after 32 others, in the other after 224. The measurements alternate between the two, so
//! that a machine that becomes slower affects both.

use vm_harness::{Container, Finished, Sandbox, Volume};

use super::{large_sandbox, path, plug_command, plug_in_batches, small_volumes};
use crate::hot_unplug::unplug_command;

const WARM_UP: usize = 32;
const MEASURED: usize = 32;
const ALL: usize = 256;
const RUNS: usize = 5;
/// The most that the last ones may cost, relative to the first, at the median.
const MAX_PLUG_RATIO: f64 = 1.1;
/// An unplug reads what QEMU has of all volumes: the records, and what uses which block node. QEMU
/// has no narrower query, and needs 8 ms for the two of 256 volumes.
const MAX_UNPLUG_RATIO: f64 = 1.25;

/// A sandbox with some volumes attached, and the volumes to measure.
struct MeasuredSandbox {
    sandbox: Sandbox,
    container: Container,
    existing: Vec<Volume>,
    measured: Vec<Volume>,
}

impl MeasuredSandbox {
    async fn with(count: usize) -> Self {
        let sandbox = large_sandbox().await;
        let container = sandbox.start_container().await;
        let existing = small_volumes(count);
        plug_in_batches(&sandbox, &container, &existing).await;
        Self { sandbox, container, existing, measured: small_volumes(MEASURED) }
    }

    /// Plugs one volume and returns the time of each stage that the command reports, and of the
    /// whole process.
    async fn plug(&self, index: usize) -> Vec<(String, u64)> {
        let one = std::iter::once((self.existing.len() + index, &self.measured[index]));
        let finished = plug_command(&self.sandbox, &self.container, one).run().await;
        stages(&self.sandbox, &finished)
    }

    /// Unplugs one volume, and returns the times as [`Self::plug`] does.
    async fn unplug(&self, index: usize) -> Vec<(String, u64)> {
        let path = path(self.existing.len() + index);
        let finished = unplug_command(&self.sandbox, &self.container, &path).run().await;
        stages(&self.sandbox, &finished)
    }
}

fn stages(sandbox: &Sandbox, finished: &Finished) -> Vec<(String, u64)> {
    finished.succeeded(sandbox.guest());
    let timings = finished.json()["timings_us"].as_object().unwrap().clone();
    let mut stages: Vec<_> =
        timings.into_iter().map(|(stage, time)| (stage, time.as_u64().unwrap())).collect();
    stages.push(("process".to_owned(), u64::try_from(finished.elapsed.as_micros()).unwrap()));
    stages
}

/// The median of one stage of several commands.
fn stage(all: &[Vec<(String, u64)>], name: &str) -> u64 {
    let times = all.iter().flatten().filter(|(stage, _)| stage == name);
    median(times.map(|(_, time)| *time).collect())
}

/// Compares commands beside few and beside many volumes. Returns the ratio of their times.
fn compare(what: &str, few: &[Vec<(String, u64)>], many: &[Vec<(String, u64)>]) -> f64 {
    let (before, after) = (stage(few, "process"), stage(many, "process"));
    let ratio = after as f64 / before as f64;
    println!("{what}: first {before} µs, last {after} µs, ratio {ratio:.3}");
    for (name, _) in &few[0] {
        println!("    {name:<24} {:>8} {:>8}", stage(few, name), stage(many, name));
    }
    ratio
}

fn median(mut times: Vec<u64>) -> u64 {
    times.sort_unstable();
    times[times.len() / 2]
}

#[tokio::test]
async fn cost_of_a_volume_does_not_grow_with_the_number_of_volumes() {
    let (few, many) =
        (MeasuredSandbox::with(WARM_UP).await, MeasuredSandbox::with(ALL - MEASURED).await);
    let (mut ratios, mut unplug_ratios) = (Vec::new(), Vec::new());
    for run in 1..=RUNS {
        let (mut first, mut last) = (Vec::new(), Vec::new());
        for index in 0..MEASURED {
            first.push(few.plug(index).await);
            last.push(many.plug(index).await);
        }
        ratios.push(compare(&format!("run {run}, hot-plug"), &first, &last));
        let (mut first, mut last) = (Vec::new(), Vec::new());
        for index in 0..MEASURED {
            first.push(few.unplug(index).await);
            last.push(many.unplug(index).await);
        }
        unplug_ratios.push(compare(&format!("run {run}, hot-unplug"), &first, &last));
    }
    for (what, ratios) in [("hot-plug", &mut ratios), ("hot-unplug", &mut unplug_ratios)] {
        ratios.sort_by(f64::total_cmp);
        println!(
            "{what}, last {MEASURED} of {ALL} to first {MEASURED} after {WARM_UP}: median {:.3}, \
             spread {:.3} to {:.3}",
            ratios[RUNS / 2],
            ratios[0],
            ratios[RUNS - 1]
        );
    }
    assert!(ratios[RUNS / 2] <= MAX_PLUG_RATIO, "the cost of a hot-plug grows: {ratios:?}");
    let ratio = unplug_ratios[RUNS / 2];
    assert!(ratio <= MAX_UNPLUG_RATIO, "the cost of a hot-unplug grows: {unplug_ratios:?}");
}
