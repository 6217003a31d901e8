//! Hot-plug and hot-unplug beside the floor, which decides, in a container without a device filter;
//! and in one that has a filter.

use vm_harness::{Container, Error, ObserverConnection};

use super::{
    floor::{Floor, FloorRounds},
    row::{Goal, Row, Series},
    samples::Samples,
    subject::{Call, Calls, Subject},
    transport::{RoundTrips, Transport},
};

/// A hot-plug may cost so much, without the start of its process, of what the floor costs.
const PLUG: Goal = Goal::AtMost(1.3);
const UNPLUG: Goal = Goal::AtMost(1.08);

/// The rounds of all that alternates in the VM of the report.
#[derive(Default)]
pub(super) struct HotPlug {
    pub(super) plug: Calls,
    pub(super) unplug: Calls,
    filtered_plug: Calls,
    filtered_unplug: Calls,
    pub(super) starts: Samples,
    harness: Samples,
    pub(super) floor: FloorRounds,
    pub(super) transport: Transport,
    plug_trips: Option<RoundTrips>,
    unplug_trips: Option<RoundTrips>,
}

impl HotPlug {
    /// Counts the round trips of both commands.
    pub(super) async fn count_round_trips(&mut self, subject: &Subject) -> Result<(), Error> {
        let container = &subject.container;
        let plug = RoundTrips::of(subject, subject.plug_command(container)).await?;
        let unplug = subject.unplug_command(container, super::subject::PATH);
        self.plug_trips = Some(plug);
        self.unplug_trips = Some(RoundTrips::of(subject, unplug).await?);
        Ok(())
    }

    /// Runs one round of each.
    pub(super) async fn round(
        &mut self,
        subject: &Subject,
        floor: &mut Floor<'_>,
        round: usize,
    ) -> Result<(), Error> {
        let (plug, unplug) = cycle(subject, &subject.container).await;
        self.plug.add(plug);
        self.unplug.add(unplug);
        floor.round(&mut self.floor, &subject.volume, round).await?;
        self.starts.add(subject.start_of_a_process().await);
        self.harness.add(subject.smallest_process().await);
        self.transport_round(subject, floor.observer).await?;
        let (plug, unplug) = cycle(subject, &subject.filtered).await;
        self.filtered_plug.add(plug);
        self.filtered_unplug.add(unplug);
        Ok(())
    }

    async fn transport_round(
        &mut self,
        subject: &Subject,
        observer: &mut ObserverConnection,
    ) -> Result<(), Error> {
        self.transport.round(subject, observer).await
    }

    pub(super) fn rows(&self) -> Vec<Row> {
        let (plug_floor, unplug_floor) = (&self.floor.plug.total, &self.floor.unplug.total);
        let mut rows = vec![
            self.beside("hot-plug", &self.plug, "floor", plug_floor).goal(PLUG),
            self.beside("hot-unplug", &self.unplug, "bare sequence", unplug_floor).goal(UNPLUG),
            self.beside("hot-plug, device filter", &self.filtered_plug, "floor", plug_floor),
            self.beside(
                "hot-unplug, device filter",
                &self.filtered_unplug,
                "bare sequence",
                unplug_floor,
            ),
        ];
        for (name, calls, trips, floor) in [
            ("hot-plug", &self.plug, self.plug_trips, plug_floor),
            ("hot-unplug", &self.unplug, self.unplug_trips, unplug_floor),
        ] {
            let Some(trips) = trips else { continue };
            let ours = calls.whole.without(&self.starts).without_time(self.transport.of(trips));
            rows.push(Row::ratio(
                format!("{name}, both without the transport to the guest ({trips})"),
                Series::times(name, ours),
                Series::times("floor", floor.without_time(self.transport.of_floor())),
            ));
        }
        rows
    }

    /// Returns how far a hot-plug is from its goal, and what the transport has of that.
    pub(super) fn account(&self) -> String {
        let ours = self.plug.whole.without(&self.starts).median();
        let floor = self.floor.plug.total.median();
        let most = PLUG.bound() * floor as f64;
        let transport = self.plug_trips.map_or(0, |trips| self.transport.of(trips));
        let in_ms = |micros: f64| micros / 1000.0;
        format!(
            "Without the start of its process {:.2} ms, {:.2} ms above the goal ({:.2} ms, for a \
             floor of {:.2} ms). A connection and calls that do nothing take {:.2} ms of it, the \
             floor's request {:.2} ms of the floor.",
            in_ms(ours as f64),
            in_ms(ours as f64 - most),
            in_ms(most),
            in_ms(floor as f64),
            in_ms(transport as f64),
            in_ms(self.transport.of_floor() as f64)
        )
    }

    fn beside(&self, name: &str, calls: &Calls, floor: &str, times: &Samples) -> Row {
        Row::ratio(
            format!("{name} without process start / {floor}"),
            Series::times(name, calls.whole.without(&self.starts)),
            Series::times(floor, times.clone()),
        )
    }

    /// Returns what the rows consist of.
    pub(super) fn parts(&self) -> Vec<Row> {
        let mut rows = vec![
            Row::times("hot-plug, the whole process", self.plug.whole.clone()),
            Row::times("hot-unplug, the whole process", self.unplug.whole.clone()),
            Row::times("`ecr-runtime --version`: the start of the process", self.starts.clone()),
            Row::times("of that the harness's own part (`true`)", self.harness.clone()),
        ];
        rows.extend(self.transport.rows());
        for (name, calls, floor) in [
            ("hot-plug", &self.plug, &self.floor.plug),
            ("hot-unplug", &self.unplug, &self.floor.unplug),
        ] {
            for stage in calls.stage_names() {
                rows.push(Row::times(format!("{name}: `{stage}`"), calls.stage(&stage)));
            }
            for (stage, times) in floor.stages() {
                rows.push(Row::times(format!("floor of {name}: `{stage}`"), times.clone()));
            }
        }
        rows
    }
}

/// Plugs and unplugs once.
async fn cycle(subject: &Subject, container: &Container) -> (Call, Call) {
    let plug = subject.plug(container).await;
    (plug, subject.unplug(container).await)
}
