//! The cost of a hot-plug does not grow with the number of attached volumes.
//!
//! Two sandboxes represent the first and the last of 256 volumes: in one the measured hot-plugs
//! come after 32 others, in the other after 224. The measurements alternate between the two, so
//! that a machine that becomes slower affects both.

use vm_harness::{Container, Sandbox, Volume};

use super::{large_sandbox, path, plug_command, plug_in_batches, small_volumes};
use crate::hot_unplug::{at, unplug};

const WARM_UP: usize = 32;
const MEASURED: usize = 32;
const ALL: usize = 256;
const RUNS: usize = 5;
/// The most that the last hot-plugs may cost, relative to the first, at the median.
const MAX_RATIO: f64 = 1.1;

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
        finished.succeeded(self.sandbox.guest());
        let timings = finished.json()["timings_us"].as_object().unwrap().clone();
        let mut stages: Vec<_> =
            timings.into_iter().map(|(stage, time)| (stage, time.as_u64().unwrap())).collect();
        stages.push(("process".to_owned(), u64::try_from(finished.elapsed.as_micros()).unwrap()));
        stages
    }

    async fn unplug_measured(&self) -> Vec<u64> {
        let mut times = Vec::new();
        for index in 0..MEASURED {
            let path = path(self.existing.len() + index);
            let start = std::time::Instant::now();
            unplug(&self.sandbox, &at(&self.container, &path)).await;
            times.push(u64::try_from(start.elapsed().as_micros()).unwrap());
        }
        times
    }
}

fn median(mut times: Vec<u64>) -> u64 {
    times.sort_unstable();
    times[times.len() / 2]
}

#[tokio::test]
async fn cost_of_a_hot_plug_does_not_grow_with_the_number_of_volumes() {
    let (few, many) =
        (MeasuredSandbox::with(WARM_UP).await, MeasuredSandbox::with(ALL - MEASURED).await);
    let mut ratios = Vec::new();
    let mut unplug_ratios = Vec::new();
    for run in 1..=RUNS {
        let (mut first, mut last) = (Vec::new(), Vec::new());
        for index in 0..MEASURED {
            first.push(few.plug(index).await);
            last.push(many.plug(index).await);
        }
        let stage = |plugs: &[Vec<(String, u64)>], name: &str| {
            median(
                plugs
                    .iter()
                    .flatten()
                    .filter(|(stage, _)| stage == name)
                    .map(|(_, time)| *time)
                    .collect(),
            )
        };
        let (before, after) = (stage(&first, "process"), stage(&last, "process"));
        let ratio = after as f64 / before as f64;
        println!("run {run}: first {before} µs, last {after} µs, ratio {ratio:.3}");
        if run == RUNS {
            for (name, _) in &first[0] {
                println!("    {name:<24} {:>8} {:>8}", stage(&first, name), stage(&last, name));
            }
        }
        ratios.push(ratio);
        let (first, last) =
            (median(few.unplug_measured().await), median(many.unplug_measured().await));
        unplug_ratios.push(last as f64 / first as f64);
    }
    ratios.sort_by(f64::total_cmp);
    unplug_ratios.sort_by(f64::total_cmp);
    println!(
        "hot-plug, last {MEASURED} of {ALL} to first {MEASURED} after {WARM_UP}: median {:.3}, spread {:.3} to {:.3}",
        ratios[RUNS / 2],
        ratios[0],
        ratios[RUNS - 1]
    );
    println!(
        "hot-unplug: median {:.3}, spread {:.3} to {:.3}",
        unplug_ratios[RUNS / 2],
        unplug_ratios[0],
        unplug_ratios[RUNS - 1]
    );
    assert!(ratios[RUNS / 2] <= MAX_RATIO, "the cost of a hot-plug grows: {ratios:?}");
}
