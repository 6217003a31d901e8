//! What people do today: `virsh attach-disk`, or the commands of QMP, and a shell in a privileged
//! container that looks for the disk every 100 ms and makes the node. It checks neither which disk
//! came nor who may open it, and nothing is rolled back.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines, SimplexStream},
    task::JoinHandle,
};
use vm_harness::{Container, ContainerOptions, Error, mount};

use super::{
    floor::{Commands, attach, detach},
    hot_plug::HotPlug,
    row::{Row, Series},
    samples::Samples,
    subject::Subject,
    virsh::TARGET,
};

const SCRIPT: &str = include_str!("polling.sh");
/// The address that libvirt gives the disk.
const ADDRESS: [&str; 3] = ["0", "0", "1"];
/// How long the shell may take with KVM.
const LIMIT: Duration = Duration::from_secs(10);

/// The shell in its container.
struct Shell {
    container: Container,
    lines: Lines<BufReader<tokio::io::ReadHalf<SimplexStream>>>,
    runs: JoinHandle<Result<i32, Error>>,
    limit: Duration,
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
            shell.says("made").await?;
            self.0.add(start.elapsed());
            detach_disk(subject, commands).await?;
            shell.says("removed").await?;
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
        let (reader, writer) = tokio::io::simplex(4096);
        let (runner, [host, target, lun]) = (container.clone(), ADDRESS);
        let runs = tokio::spawn(async move {
            let command = ["/bin/sh", "-c", SCRIPT, "sh", host, target, lun];
            runner.exec_on(&command, tokio::io::empty(), writer, tokio::io::sink()).await
        });
        let lines = BufReader::new(reader).lines();
        Ok(Self { container, lines, runs, limit: subject.sandbox.guest().scaled(LIMIT) })
    }

    /// Waits for its next line.
    async fn says(&mut self, expected: &'static str) -> Result<(), Error> {
        let line = tokio::time::timeout(self.limit, self.lines.next_line()).await;
        let line = line.map_err(|_| Error::TimedOut {
            awaited: format!("the line {expected:?} of the shell that polls"),
            limit: self.limit,
            report: String::new(),
        })?;
        match line {
            Ok(Some(line)) if line == expected => Ok(()),
            other => Err(Error::Failed {
                command: "the shell that polls".to_owned(),
                message: format!("it said {other:?} in place of {expected:?}"),
            }),
        }
    }

    async fn end(self) -> Result<(), Error> {
        self.runs.abort();
        self.container.kill().await?;
        self.container.remove().await
    }
}
