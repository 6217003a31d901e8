//! `block-volume hot-plug`: the sequence from a host volume to a device in a running container.
//!
//! 1. Before anything changes: find the sandbox, lock it, ask guest, QEMU and the source.
//! 2. Take back what a killed run left of the same volume.
//! 3. For each volume `add-fd` (with the intent), `blockdev-add`, `device_add`.
//! 4. One `Attach` for all volumes in the guest; then the outcome is written beside each intent.
//!
//! All or nothing: any failure, lost reply, deadline or signal undoes every step that may have been
//! taken.

use std::{path::PathBuf, time::Duration};

use block_volume_api::block_volume::{AttachRequest, ProbeResponse};

mod item;
mod rehearse;
mod settle;
mod take_back;

use item::{Item, There, Touched};

use crate::{
    Deadline, Error,
    agent::{self, Agent, AgentAddress},
    cli::HotPlug,
    disk::{self, Address, Addresses},
    fault, lock, outcome,
    output::{self, Outcome, Report, SCHEMA, Scsi, Timings, Volume},
    prepare::{self, Prepared},
    printable::printable,
    qemu_bug,
    record::{Access, Intent, Record},
    registry::Registry,
    sandbox::Place,
    signals::Signals,
    stopwatch::Stopwatch,
    volume::{VolumeId, check_device_path, place_name},
};
use block_volume_qmp::Qmp;

/// The most volumes of one call.
const MOST_VOLUMES: usize = 256;
/// The most stages of the guest that are shown.
const MOST_STAGES: usize = 32;
/// The most time that is kept for the undo, of the command's.
const UNDO_SHARE: Duration = Duration::from_secs(5);
/// The guest's own undo is given this long before its reply is taken for lost.
const REPLY_GRACE: Duration = Duration::from_secs(2);
/// What wrote the records.
const TOOL: &str = env!("CARGO_PKG_VERSION");

/// Runs the verb.
///
/// # Errors
/// The volumes are not plugged; unless it is [`Error::Incomplete`], nothing is left of the attempt.
pub async fn run(verb: &HotPlug, run_dir: Option<PathBuf>) -> Result<Report, Error> {
    let mut watch = Stopwatch::new();
    let deadline = Deadline::after(verb.target.timeout);
    let mut signals = Signals::catch()?;
    check(verb)?;
    let place = Place::find(&verb.target.search(run_dir, Some(&verb.container))?)?;
    let container = place.container(&verb.container, &[])?;
    watch.lap("find");
    let _lock = signals.unless_caught(lock::acquire(&place.lock_directory(), deadline)).await?;
    watch.lap("lock");

    let prepared = signals
        .unless_caught(prepare::prepare(&place, &container, verb, deadline, &mut watch))
        .await?;
    fault::point("after-probe").await?;

    let (mut plug, mut registry, probe) =
        Plug::new(verb, &place, container, deadline, watch, prepared)?;
    let done = signals.unless_caught(plug.run(&mut registry, probe)).await;
    let Err(cause) = done else { return plug.report() };
    let may_be_left = plug.touched();
    let left = tokio::select! {
        left = plug.take_back() => left,
        _ = signals.next() => {
            let text = "a second signal ended the undo; what may be left:".to_owned();
            [vec![text], may_be_left].concat()
        }
    };
    if left.is_empty() {
        Err(cause)
    } else {
        Err(Error::Incomplete { cause: Box::new(cause), left })
    }
}

/// What can be said of the command line alone.
fn check(verb: &HotPlug) -> Result<(), Error> {
    let (volumes, paths) = (verb.block_volume.len(), verb.device_path.len());
    if volumes != paths {
        return Err(Error::Unpaired { volumes, paths });
    }
    verb.limits.change()?.alone()?;
    if volumes > MOST_VOLUMES {
        return Err(Error::TooMany { count: volumes });
    }
    for (index, path) in verb.device_path.iter().enumerate() {
        check_device_path(path).map_err(|why| Error::DevicePath { path: path.clone(), why })?;
        if verb.device_path[..index].contains(path) {
            return Err(Error::Repeated { what: "the path", value: path.clone() });
        }
    }
    Ok(())
}

/// The plug of all volumes of one call.
struct Plug<'a> {
    verb: &'a HotPlug,
    place: &'a Place,
    container: String,
    deadline: Deadline,
    watch: Stopwatch,
    link: Link,
    items: Vec<Item>,
    /// The guest was asked, and did not say that all is undone.
    guest_asked: bool,
}

/// The two that are talked to.
struct Link {
    address: AgentAddress,
    agent: Agent,
    qmp: Qmp,
}

impl<'a> Plug<'a> {
    fn new(
        verb: &'a HotPlug,
        place: &'a Place,
        container: String,
        deadline: Deadline,
        watch: Stopwatch,
        prepared: Prepared,
    ) -> Result<(Self, Option<Registry>, ProbeResponse), Error> {
        let run = format!("{:08x}", fastrand::u32(..));
        let limits = verb.limits.change()?.alone()?;
        let mut items: Vec<Item> = Vec::with_capacity(prepared.sources.len());
        for (source, path) in prepared.sources.into_iter().zip(&verb.device_path) {
            let id = VolumeId::derive(&place.sandbox, &source.identity);
            if items.iter().any(|item| item.id == id) {
                return Err(Error::Repeated {
                    what: "the volume",
                    value: source.given.display().to_string(),
                });
            }
            let intent = Intent {
                v: 1,
                id: id.to_string(),
                container: container.clone(),
                path: path.clone(),
                source: source.device.to_string_lossy().into_owned(),
                size: source.size,
                access: if verb.read_only { Access::ReadOnly } else { Access::ReadWrite },
                uid: verb.uid,
                gid: verb.gid,
                mode: verb.mode,
                tool: TOOL.to_owned(),
                run: run.clone(),
            };
            let (address, touched) = (Address { target: 0, lun: 0 }, Touched::Nothing);
            let (controller, there) = (prepared.controller.clone(), None);
            items.push(Item {
                id,
                source,
                intent,
                there,
                leftover: false,
                touched,
                set: 0,
                controller,
                address,
                attached: None,
                limits,
            });
        }
        let link = Link { address: prepared.address, agent: prepared.agent, qmp: prepared.qmp };
        let plug =
            Self { verb, place, container, deadline, watch, link, items, guest_asked: false };
        Ok((plug, prepared.registry, prepared.probe))
    }

    fn note(&self, text: impl FnOnce() -> String) {
        if self.verb.target.verbose {
            output::note(&printable(&text()));
        }
    }

    async fn run(
        &mut self,
        registry: &mut Option<Registry>,
        mut probe: ProbeResponse,
    ) -> Result<(), Error> {
        qemu_bug::warnings(self.link.qmp.version()).for_each(|warning| output::note(&warning));
        let took_back = match registry {
            Some(registry) => self.settle(registry).await?,
            None => false,
        };
        if took_back && !self.verb.dry_run {
            // What was taken back may have freed a path.
            let paths = self.verb.device_path.clone();
            probe = self.link.agent.probe(&self.container, paths, self.deadline).await?;
        }
        // In a dry run the leftovers are there still, at the path and over the source.
        for index in 0..self.items.len() {
            let item = &self.items[index];
            if item.is_plugged() || self.verb.dry_run && item.leftover {
                continue;
            }
            let free = prepare::check_path(&probe, &item.intent.path);
            if matches!(free, Err(Error::PathTaken { .. })) {
                self.check_records_of_path(index).await?;
            }
            free?;
            let item = &self.items[index];
            if item.there.is_none() {
                item.source.claim()?;
            }
        }
        self.watch.lap("settle");
        if self.verb.dry_run {
            return self.rehearse(&probe).await;
        }
        let mut addresses = Addresses::shuffled();
        for index in 0..self.items.len() {
            match self.items[index].there {
                None => self.add_disk(index, &mut addresses).await?,
                Some(_) => self.begin_use(index).await?,
            }
        }
        self.attach().await?;
        self.write_placements().await
    }

    /// Notes a further use of a disk that others have, before the guest is asked for it, and keeps
    /// its place.
    async fn begin_use(&mut self, index: usize) -> Result<(), Error> {
        let (item, qmp) = (&mut self.items[index], &mut self.link.qmp);
        if let Some(begun) = item.begun().filter(|_| !item.is_plugged()) {
            item.touched = Touched::Use;
            let carrier = outcome::note(qmp, item.set, &begun).await?;
            item.begin(carrier, begun);
            fault::point("after-note-use").await?;
        }
        if item.is_further() {
            // Also of one that was there: a killed unplug may have begun with its place.
            disk::keep_place(qmp, &place_name(&item.intent.container, &item.intent.path)).await?;
            fault::point("after-begin-use").await?;
            self.watch.lap("begin_use");
        }
        Ok(())
    }

    /// Hands the volume to QEMU, as a disk of the VM.
    async fn add_disk(&mut self, index: usize, addresses: &mut Addresses) -> Result<(), Error> {
        let item = &mut self.items[index];
        let qmp = &mut self.link.qmp;
        // Sent is as good as done: of a QEMU that was stopped before, one in five executed this
        // from its socket's buffer when it went on, though nobody was connected any more (10.0).
        item.touched = Touched::Records;
        let intent = Record::Intent(item.intent.clone()).to_opaque();
        item.set = qmp.add_fd(item.source.claim()?, None, &intent).await?.set;
        fault::point("after-add-fd").await?;
        self.watch.lap("add_fd");

        item.touched = Touched::Disk;
        self.add_node(index).await?;
        fault::point("after-blockdev-add").await?;
        self.watch.lap("blockdev_add");

        let (item, qmp) = (&mut self.items[index], &mut self.link.qmp);
        item.address =
            disk::add_device(qmp, &item.id, &item.source, &item.controller.id, addresses).await?;
        fault::point("after-device-add").await?;
        self.watch.lap("device_add");
        // Before the guest is asked to make it usable: QEMU has no way to add a device with limits.
        if !item.limits.is_unlimited() {
            item.limits.write(qmp, &item.id).await?;
            self.watch.lap("throttle");
        }
        let Item { id, controller, address: Address { target, lun }, .. } = &self.items[index];
        self.note(|| format!("volume {id} is disk {}:{target}:{lun}", controller.id));
        Ok(())
    }

    /// Makes the volume's block node, under the name of its place: whether another volume is there
    /// is for QEMU to say.
    async fn add_node(&mut self, index: usize) -> Result<(), Error> {
        let Intent { container, path, .. } = &self.items[index].intent;
        let place = place_name(container, path);
        if self.try_add_node(index, Some(&place)).await? {
            return Ok(());
        }
        self.items[index].touched = Touched::Records;
        self.check_records_of_path(index).await?;
        // The name outlived the use that it was for: others go on with that disk, or a run was
        // killed.
        self.items[index].touched = Touched::Disk;
        self.try_add_node(index, None).await.map(drop)
    }

    async fn try_add_node(&mut self, index: usize, place: Option<&str>) -> Result<bool, Error> {
        let (item, qmp) = (&mut self.items[index], &mut self.link.qmp);
        let added =
            disk::add_node(qmp, &item.id, &item.source, self.verb.read_only, item.set, place).await;
        if matches!(added, Err(Error::AnotherRun { .. })) {
            item.touched = Touched::Records;
        }
        added
    }

    /// Asks the guest to make all volumes usable.
    async fn attach(&mut self) -> Result<(), Error> {
        let remaining = self.deadline.remaining();
        let guest = (remaining - (remaining / 4).min(UNDO_SHARE)).min(agent::LONGEST_REQUEST);
        let reply_by =
            Deadline::after(guest + REPLY_GRACE).min(Deadline::after((guest + remaining) / 2));
        let request = AttachRequest {
            attachments: self.items.iter().map(Item::attachment).collect(),
            timeout_ms: agent::timeout_ms(guest),
            ..Default::default()
        };
        self.guest_asked = true;
        let reply = self.link.agent.attach(&request, reply_by).await;
        if matches!(reply, Err(Error::Guest { undone: true, .. })) {
            self.guest_asked = false;
        }
        let reply = reply?;
        fault::point("after-attach").await?;
        for stage in reply.stages.iter().take(MOST_STAGES) {
            self.watch.record(
                format!("guest_{}", printable(&stage.name)),
                Duration::from_micros(stage.micros),
            );
        }
        if reply.attached.len() != self.items.len() {
            return Err(outcome::answer("another number of volumes"));
        }
        let asked = request.attachments.iter().zip(reply.attached);
        for (item, (asked, attached)) in self.items.iter_mut().zip(asked) {
            outcome::check(asked, &attached)?;
            item.attached = Some(attached);
        }
        self.watch.lap("attach");
        Ok(())
    }

    /// Writes what was done beside each intent. With this a volume is plugged; without it a later
    /// run takes it back.
    async fn write_placements(&mut self) -> Result<(), Error> {
        for item in &self.items {
            let Some(attached) = &item.attached else { continue };
            if item.is_noted(attached) {
                continue;
            }
            let before = item.there.as_ref().and_then(There::carrier);
            outcome::write(&mut self.link.qmp, item.set, before, &item.placement(attached)).await?;
        }
        fault::point("after-outcome").await?;
        self.watch.lap("outcome");
        Ok(())
    }

    fn report(self) -> Result<Report, Error> {
        let unchanged = |item: &Item| {
            item.is_plugged() && item.attached.as_ref().is_some_and(|attached| attached.unchanged)
        };
        let result = match self.items.iter().all(unchanged) {
            true => Outcome::Unchanged,
            false if self.verb.dry_run => Outcome::WouldAttach,
            false => Outcome::Attached,
        };
        let volumes = self.items.iter().map(|item| Volume {
            id: item.id.to_string(),
            sandbox: self.place.sandbox.clone(),
            container: item.intent.container.clone(),
            device_path: item.intent.path.clone(),
            source: item.source.given.clone(),
            source_device: item.source.device.clone(),
            size: item.size(),
            read_only: self.verb.read_only,
            shared: item.is_shared(),
            throttle: item.limits,
            scsi: Scsi {
                controller: item.controller.id.clone(),
                target: item.address.target,
                lun: item.address.lun,
            },
            ..item
                .attached
                .as_ref()
                .map(|attached| item.placement(attached))
                .map(Volume::from)
                .unwrap_or_default()
        });
        let volumes = volumes.collect();
        let timings_us = Timings(self.watch.finish());
        Ok(Report {
            schema: SCHEMA,
            command: "hot-plug".to_owned(),
            result,
            volumes,
            broke: Vec::new(),
            timings_us,
        })
    }
}
