//! What people do today: `virsh attach-disk`, or the commands of QMP, and a shell in a privileged
//! container that looks for the disk every 100 ms and makes the node. It checks neither which disk
//! came nor who may open it, and nothing is rolled back.

use std::time::Instant;

use vm_harness::{Container, ContainerOptions, Error, mount};

use super::{
    floor::{Commands, attach, detach},
    hot_plug::HotPlug,
    process::Process,
    row::{Row, Series},
    samples::Samples,
    subject::Subject,
    virsh::TARGET,
};

const SCRIPT: &str = include_str!("polling.sh");
/// The address that libvirt gives the disk.
const ADDRESS: [&str; 3] = ["0", "0", "1"];

/// The shell in its container.
struct Shell {
    container: Container,
    process: Process,
}

/// The times until the container can open the node.
#[derive(Default)]
pub(super) struct Polling(Samples);

impl Polling {
    /// Measures some rounds.
    pub(super) async fn measure(
        &mut self,
        subject: &Subject,
        commands: &Commands,
        rounds: usize,
    ) -> Result<(), Error> {
        let mut shell = Shell::start(subject).await?;
        for _ in 0..rounds {
            let start = Instant::now();
            attach_disk(subject, commands).await?;
            shell.process.says("made").await?;
            self.0.add(start.elapsed());
            detach_disk(subject, commands).await?;
            shell.process.says("removed").await?;
        }
        shell.end().await
    }

    pub(super) fn row(&self, subject: &Subject, ours: &HotPlug) -> Row {
        let theirs = match subject.virsh {
            Some(_) => "virsh attach-disk and a shell in the container that polls every 100 ms",
            None => "commands of QMP and a shell in the container that polls every 100 ms",
        };
        Row::ratio(
            format!("hot-plug, the whole process / {theirs}"),
            Series::times("hot-plug", ours.plug.whole.clone()),
            Series::times("what people do today", self.0.clone()),
        )
    }
}

async fn attach_disk(subject: &Subject, commands: &Commands) -> Result<(), Error> {
    match &subject.virsh {
        Some(virsh) => virsh.attach(subject.volume.name(), TARGET).await.map(drop),
        None => attach(&mut subject.sandbox.monitor().await?, commands, &subject.volume).await,
    }
}

async fn detach_disk(subject: &Subject, commands: &Commands) -> Result<(), Error> {
    match &subject.virsh {
        Some(virsh) => virsh.detach(TARGET).await.map(drop),
        None => {
            detach(&mut subject.sandbox.monitor().await?, commands).await;
            Ok(())
        }
    }
}

impl Shell {
    async fn start(subject: &Subject) -> Result<Self, Error> {
        let options = ContainerOptions {
            mounts: vec![mount("/dev/guest-sys", "bind", "/sys", &["rbind", "rw"])],
            ..ContainerOptions::default()
        };
        let container = subject.sandbox.try_start_container(&options).await?;
        let [host, target, lun] = ADDRESS;
        let command = ["/bin/sh", "-c", SCRIPT, "sh", host, target, lun];
        let process = Process::start(subject, &container, "the shell that polls", &command);
        Ok(Self { container, process })
    }

    async fn end(self) -> Result<(), Error> {
        self.process.leave();
        self.container.kill().await?;
        self.container.remove().await
    }
}
