//! File systems: a hot-plug that mounts one, beside the floor (a bare disk and a bare mount) and
//! beside a hot-plug of the device; and how soon a process of the container has read a file that it
//! waits for, as a function of a platform that starts its containers before it knows what they will
//! run.

use std::time::Instant;

use vm_harness::{EcrRuntime, Error, FileSystem, LoopOptions, Volume};

use super::{
    floor::{Commands, Floor, FloorRounds},
    hot_plug::HotPlug,
    process::Process,
    row::{Row, Series},
    samples::Samples,
    subject::{Calls, OBSERVER, Subject},
};

const PATH: &str = "/dev/function";
const FILE: &str = "handler";

/// The volume, and the commands that QEMU gets when it is plugged.
pub(super) struct MountSubject {
    volume: Volume,
    pub(super) commands: Commands,
}

impl MountSubject {
    pub(super) async fn of(subject: &Subject) -> Result<Self, Error> {
        let files: &[(&str, &[u8])] = &[(FILE, b"code")];
        let volume = FileSystem::Ext4.loop_device(files, LoopOptions::default());
        let (plug, unplug) = (plug_command(subject, &volume), unplug_command(subject));
        let commands = Commands::record(subject, plug, &unplug).await?;
        Ok(Self { volume, commands })
    }
}

fn plug_command(subject: &Subject, volume: &Volume) -> EcrRuntime {
    subject.sandbox.mount_command(&subject.container, &[(volume, PATH)])
}

fn unplug_command(subject: &Subject) -> EcrRuntime {
    let sandbox = &subject.sandbox;
    sandbox
        .ecr_runtime()
        .args(["block-volume", "hot-unplug", "--output", "json", "--sandbox", sandbox.id()])
        .args(["--container", subject.container.id(), "--mount-path", PATH])
}

/// The rounds.
#[derive(Default)]
pub(super) struct Mounts {
    plug: Calls,
    unplug: Calls,
    floor: FloorRounds,
    arrivals: Samples,
}

impl Mounts {
    /// Runs one round of each.
    pub(super) async fn round(
        &mut self,
        subject: &Subject,
        file_system: &MountSubject,
        floor: &mut Floor<'_>,
        round: usize,
    ) -> Result<(), Error> {
        self.plug.add(subject.call(&plug_command(subject, &file_system.volume)).await);
        self.unplug.add(subject.call(&unplug_command(subject)).await);
        floor.round(&mut self.floor, &file_system.volume, round).await
    }

    /// Measures the time from the start of the command to the line of a process that has read the
    /// file.
    pub(super) async fn arrivals(
        &mut self,
        subject: &Subject,
        file_system: &MountSubject,
        rounds: usize,
    ) -> Result<(), Error> {
        let command = [OBSERVER, "await", &format!("{PATH}/{FILE}")];
        let name = "the process that waits for a file";
        let mut process = Process::start(subject, &subject.container, name, &command);
        process.says("waits").await?;
        for _ in 0..rounds {
            let start = Instant::now();
            let command = plug_command(subject, &file_system.volume);
            let arrives = async {
                process.says("read").await?;
                Ok::<_, Error>(start.elapsed())
            };
            let (_, arrival) = tokio::join!(subject.call(&command), arrives);
            self.arrivals.add(arrival?);
            subject.call(&unplug_command(subject)).await;
            process.says("gone").await?;
        }
        process.leave();
        Ok(())
    }

    pub(super) fn rows(&self, device: &HotPlug) -> Vec<Row> {
        let beside = |name: &str, calls: &Calls, floor: &str, times: &Samples| {
            Row::ratio(
                format!("{name} without process start / {floor}"),
                Series::times(name, calls.whole.without(&device.starts)),
                Series::times(floor, times.clone()),
            )
        };
        let whole = |name: &str, calls: &Calls, device: &Calls| {
            Row::ratio(
                format!("{name} / of a device, the whole process"),
                Series::times(name, calls.whole.clone()),
                Series::times("of a device", device.whole.clone()),
            )
        };
        let (plug, unplug) = ("hot-plug of a file system", "hot-unplug of a file system");
        vec![
            beside(plug, &self.plug, "bare disk and bare mount", &self.floor.plug.total),
            beside(unplug, &self.unplug, "bare sequence", &self.floor.unplug.total),
            whole(plug, &self.plug, &device.plug),
            whole(unplug, &self.unplug, &device.unplug),
            Row::ratio(
                "from the command to a file read by a process that waits / the whole process",
                Series::times("read", self.arrivals.clone()),
                Series::times(plug, self.plug.whole.clone()),
            ),
        ]
    }
}
