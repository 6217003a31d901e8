//! A run: what alternates, and what comes after what.

use guest_observer::Request;
use vm_harness::{Environment, Error, Machine};

use super::{
    Bench,
    batch::Batch,
    floor::{Commands, Floor},
    hot_plug::HotPlug,
    list::List,
    logging_agent::LoggingAgent,
    machine::MachineFacts,
    mount::{MountSubject, Mounts},
    plan::Plan,
    polling::Polling,
    report::{Report, Section},
    row::{Row, Series},
    scale::{ScaleTimes, small_volumes},
    subject::{self, Subject},
    throughput, trace,
    virsh::VirshRounds,
};
use crate::command::progress::step;

/// For 256 disks.
const MEMORY: u32 = 768;

/// Measures everything.
pub(super) async fn run(bench: &Bench) -> Result<Report, Error> {
    let plan = if bench.quick { Plan::quick() } else { Plan::whole(bench.rounds) };
    let kernel_parameters = bench.kernel_param.clone();
    let machine = Machine { kernel_parameters, memory: MEMORY, ..Machine::default() };
    let subject = boot(bench, &machine).await?;
    let machine_facts = MachineFacts::of(&subject).await?;
    let (plug, unplug) = (
        subject.plug_command(&subject.container),
        subject.unplug_command(&subject.container, subject::PATH),
    );
    let commands = Commands::record(&subject, plug, &unplug).await?;
    let file_system = MountSubject::of(&subject).await?;
    let mut alternating = Alternating::default();
    if plan.more_vms {
        let boot = LoggingAgent::boot(&machine);
        alternating.logging = Some(step("boot a VM whose agent logs device events", boot).await?);
    }
    step("hot-plug, hot-unplug and what they are compared with", async {
        alternating.measure(&subject, &commands, &file_system, plan).await
    })
    .await?;
    let Alternating { hot_plug, mut mounts, virsh, logging } = alternating;
    step("a process that waits for a file", async {
        mounts.arrivals(&subject, &file_system, plan.rounds).await
    })
    .await?;

    let mut polling = Polling::default();
    step("a shell that polls", polling.measure(&subject, &commands, plan.polling_rounds)).await?;
    let mut batch = Batch::default();
    let volumes = small_volumes(plan.scale.volumes.max(plan.batch));
    step("many volumes at once", async {
        for _ in 0..plan.batch_rounds {
            batch.round(&subject, &volumes[..plan.batch]).await;
        }
    })
    .await;
    let (mut scale, mut list) = (ScaleTimes::default(), List::new(plan.lists));
    step("very many volumes", async {
        for _ in 0..plan.scale.passes {
            let volumes = &volumes[..plan.scale.volumes];
            scale.pass(&subject, volumes, &mut list).await?;
        }
        Ok::<_, Error>(())
    })
    .await?;
    let throughput = step("reads and writes", reads_and_writes(&subject, &machine, plan)).await?;

    let mut judged = hot_plug.rows();
    judged.extend(scale.rows(plan.scale));
    judged.push(batch.row(plan.batch, &hot_plug));
    judged.extend(virsh.rows(&hot_plug));
    judged.push(polling.row(&subject, &hot_plug));
    judged.extend(mounts.rows(&hot_plug));
    judged.push(list.row(plan.scale.volumes));
    let mut sections = vec![
        Section { title: "Beside the floor, and beside others", rows: judged },
        Section { title: "Reads and writes in the container", rows: throughput },
    ];
    if plan.more_vms {
        let rows = bench.plugin_cost.rows(&subject.sandbox).await?;
        sections.push(Section { title: "What the plugin costs the reference agent", rows });
    }
    let mut parts = hot_plug.parts();
    parts.extend(logging.iter().flat_map(|logging| logging.rows(&hot_plug.plug)));
    sections.push(Section { title: "Parts", rows: parts });
    if bench.trace {
        trace::print(&subject, &hot_plug).await?;
    }
    let panels = panels(&hot_plug, &virsh);
    Ok(Report { machine: machine_facts, rounds: plan.rounds, sections, panels, scale })
}

async fn boot(bench: &Bench, machine: &Machine) -> Result<Subject, Error> {
    let libvirt = Environment::from_variables().libvirt();
    match libvirt {
        _ if bench.without_virsh => {}
        Err(error) if bench.quick => eprintln!("virsh is not compared: {}", error.chain()),
        Err(error) => return Err(error),
        Ok(_) => return step("boot a VM by libvirt", Subject::boot_by_libvirt(machine)).await,
    }
    step("boot a VM", Subject::boot(machine)).await
}

/// What alternates, so that a machine that becomes slower affects all of it.
#[derive(Default)]
struct Alternating {
    hot_plug: HotPlug,
    mounts: Mounts,
    virsh: VirshRounds,
    logging: Option<LoggingAgent>,
}

impl Alternating {
    async fn measure(
        &mut self,
        subject: &Subject,
        commands: &Commands,
        file_system: &MountSubject,
        plan: Plan,
    ) -> Result<(), Error> {
        let mut monitor = subject.sandbox.monitor().await?;
        let mut observer = subject.sandbox.observer().open().await?;
        observer.ask(&Request::OpenUevents).await?;
        for round in 0..plan.warm_up + plan.rounds {
            if round == plan.warm_up {
                (self.hot_plug, self.mounts, self.virsh) = Default::default();
                self.logging.iter_mut().for_each(LoggingAgent::forget);
            }
            let (monitor, observer) = (&mut monitor, &mut observer);
            let mut floor = Floor { monitor, observer, commands, mounts: false };
            self.hot_plug.round(subject, &mut floor, round).await?;
            let commands = &file_system.commands;
            let mut floor = Floor { commands, mounts: true, ..floor };
            self.mounts.round(subject, file_system, &mut floor, round).await?;
            self.virsh.round(subject).await?;
            if let Some(logging) = &mut self.logging {
                logging.round().await;
            }
        }
        self.hot_plug.count_round_trips(subject).await
    }
}

async fn reads_and_writes(
    subject: &Subject,
    machine: &Machine,
    plan: Plan,
) -> Result<Vec<Row>, Error> {
    let mut rows = throughput::rows(subject, "no I/O thread", plan.throughput).await?;
    if plan.more_vms {
        let controller = ["-object", "iothread,id=io0", "-device"].map(str::to_owned);
        let device = "virtio-scsi-pci,id=scsi0,iothread=io0".to_owned();
        let controller = controller.into_iter().chain([device]).collect();
        let with_thread = Subject::boot(&Machine { controller, ..machine.clone() }).await?;
        rows.extend(throughput::rows(&with_thread, "I/O thread", plan.throughput).await?);
    }
    Ok(rows)
}

/// Returns what the plot of the distribution shows.
fn panels(hot_plug: &HotPlug, virsh: &VirshRounds) -> Vec<(&'static str, Vec<Series>)> {
    let panel = |title, floor: &str, calls, least, command: &str, theirs| {
        let HotPlug { starts, .. } = hot_plug;
        let calls: &super::subject::Calls = calls;
        let least: &super::samples::Samples = least;
        let theirs: &super::samples::Samples = theirs;
        let mut series = vec![
            Series::times(floor, least.clone()),
            Series::times("without process start", calls.whole.without(starts)),
            Series::times("the whole process", calls.whole.clone()),
        ];
        if !theirs.is_empty() {
            series.push(Series::times(command, theirs.clone()));
        }
        (title, series)
    };
    let floor = &hot_plug.floor;
    vec![
        panel(
            "hot-plug",
            "floor",
            &hot_plug.plug,
            &floor.plug.total,
            "virsh attach-disk",
            &virsh.attach,
        ),
        panel(
            "hot-unplug",
            "bare sequence",
            &hot_plug.unplug,
            &floor.unplug.total,
            "virsh detach-disk",
            &virsh.detach,
        ),
    ]
}
