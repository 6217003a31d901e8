//! `block-volume hot-plug`: the sequence from a host volume to a device in a running container.
//!
//! 1. Before anything changes: find the sandbox, lock it, ask guest, QEMU and the source.
//! 2. Take back what a killed run left of the same volume.
//! 3. For each volume `add-fd` (with the intent), `blockdev-add`, `device_add`.
//! 4. One `Attach` for all volumes in the guest; then the outcome is written beside each intent.
//!
//! All or nothing: any failure, lost reply, deadline or signal undoes every step that may have been taken.

use std::{fs::OpenOptions, path::PathBuf, time::Duration};

use agent_plugin::contract::block_volume::{AttachRequest, Attachment, ProbeResponse};
use serde_json::json;

mod item;
mod take_back;

use item::{Item, Touched, answer, check_answer, check_same, placement};

use crate::{
    Deadline, Error,
    agent::{self, Agent, AgentAddress},
    cli::HotPlug,
    deadline::Stopwatch,
    disk::{self, Address, Addresses},
    fault,
    limits::Limits,
    lock,
    output::{self, Outcome, Report, SCHEMA, Scsi, Timings, Volume},
    prepare::{self, Prepared},
    printable::printable,
    qmp::{PassedFd, Qmp},
    record::{Access, Intent, Placement, Record},
    registry::{Presence, Registry},
    sandbox::Place,
    signals::Signals,
    source::Source,
    undo::{self, Whose},
    volume::{VolumeId, check_device_path},
};

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

    let prepared =
        signals.unless_caught(prepare::prepare(&place, &container, verb, deadline, &mut watch)).await?;
    fault::point("after-probe").await?;

    let (mut plug, mut registry, probe) = Plug::new(verb, &place, container, deadline, watch, prepared)?;
    let done = signals.unless_caught(plug.run(&mut registry, probe)).await;
    let Err(cause) = done else { return plug.report() };
    let left = tokio::select! {
        left = plug.take_back() => left,
        _ = signals.next() => vec!["a second signal ended the undo".to_owned()],
    };
    if left.is_empty() { Err(cause) } else { Err(Error::Incomplete { cause: Box::new(cause), left }) }
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
    ) -> Result<(Self, Registry, ProbeResponse), Error> {
        let run = format!("{:08x}", fastrand::u32(..));
        let controller = prepared.registry.controller(verb.controller.as_deref())?;
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
            let (controller, plugged) = (controller.clone(), None);
            items.push(Item {
                id,
                source,
                intent,
                plugged,
                touched,
                set: 0,
                controller,
                address,
                attached: None,
                limits,
            });
        }
        let link = Link { address: prepared.address, agent: prepared.agent, qmp: prepared.qmp };
        let plug = Self { verb, place, container, deadline, watch, link, items, guest_asked: false };
        Ok((plug, prepared.registry, prepared.probe))
    }

    fn note(&self, text: impl FnOnce() -> String) {
        if self.verb.target.verbose {
            output::note(&printable(&text()));
        }
    }

    async fn run(&mut self, registry: &mut Registry, mut probe: ProbeResponse) -> Result<(), Error> {
        if self.settle(registry).await? {
            // What was taken back may have freed a path.
            let paths = self.verb.device_path.clone();
            probe = self.link.agent.probe(&self.container, paths, self.deadline).await?;
        }
        for item in self.items.iter().filter(|item| item.plugged.is_none()) {
            prepare::check_path(&probe, &item.intent.path)?;
            item.source.claim()?;
        }
        self.watch.lap("settle");
        let mut addresses = Addresses::shuffled();
        for index in 0..self.items.len() {
            if self.items[index].plugged.is_none() {
                self.add_disk(index, &mut addresses).await?;
            }
        }
        self.attach().await?;
        self.write_placements().await
    }

    /// Finds what is plugged already, and takes back what killed runs left. Was there any of that?
    async fn settle(&mut self, registry: &mut Registry) -> Result<bool, Error> {
        let mut took_back = false;
        for index in 0..self.items.len() {
            if !registry.presence(&self.items[index].id).is_nothing() {
                registry.read_nodes(&mut self.link.qmp).await?;
            }
            let presence = registry.presence(&self.items[index].id);
            if presence.is_nothing() {
                self.check_path_of_records(registry, index)?;
            } else if let Some(committed) = presence.committed() {
                let mut limits = Limits::read(&mut self.link.qmp).await?;
                let item = &mut self.items[index];
                check_same(&item.intent, &committed.intent)?;
                item.limits = limits.remove(&item.id).unwrap_or_default();
                if self.verb.limits.change()?.of(&item.id, &item.limits).ok() != Some(item.limits) {
                    let (volume, differs) = (item.id.to_string(), vec!["limit (--iops, --bps)"]);
                    return Err(Error::OtherOptions { volume, differs });
                }
                let placement = &committed.placement;
                let named = self.verb.controller.as_ref();
                if named.is_some_and(|named| *named != placement.controller) {
                    let (volume, differs) = (item.id.to_string(), vec!["controller (--controller)"]);
                    return Err(Error::OtherOptions { volume, differs });
                }
                // Not the one that a new volume would get.
                item.controller = registry.controller(Some(&placement.controller))?;
                item.address = Address { target: placement.target, lun: placement.lun };
                item.plugged = Some(committed);
            } else {
                took_back = true;
                self.note(|| {
                    format!("taking back what an earlier run left of volume {}", self.items[index].id)
                });
                self.recover(index, &presence).await.map_err(|cause| Error::Incomplete {
                    left: vec![format!("what an earlier run left of volume {}", self.items[index].id)],
                    cause: Box::new(cause),
                })?;
                let source = &mut self.items[index].source;
                *source = Source::open(&source.given, self.verb.read_only)?;
            }
        }
        Ok(took_back)
    }

    /// Is another volume of ours at this item's path?
    fn check_path_of_records(&self, registry: &Registry, index: usize) -> Result<(), Error> {
        let Intent { container, path, .. } = &self.items[index].intent;
        let is_here = |intent: &Intent, placement: &Placement| {
            placement.committed
                && placement.container.as_ref().unwrap_or(&intent.container) == container
                && placement.path.as_ref().unwrap_or(&intent.path) == path
        };
        let holder = registry.volumes().find_map(|(_, intent, placements)| {
            placements.iter().any(|(_, placement)| is_here(&intent, placement)).then_some(intent.id)
        });
        match holder {
            Some(volume) => {
                Err(Error::PathHoldsVolume { path: path.clone(), container: container.clone(), volume })
            }
            None => Ok(()),
        }
    }

    async fn recover(&mut self, index: usize, presence: &Presence) -> Result<(), Error> {
        let item = &self.items[index];
        let Link { agent, qmp, .. } = &mut self.link;
        if presence.device || !presence.placements.is_empty() {
            // The earlier run may have used another controller: the guest looks at all of them, and the serial decides.
            let detachment = undo::detachment(qmp, presence, &item.intent, "").await?;
            undo::detach(agent, vec![detachment], self.deadline).await?;
        }
        undo::remove(qmp, &item.id, Whose::Any, self.deadline).await?;
        Ok(())
    }

    /// Hands the volume to QEMU, as a disk of the VM.
    async fn add_disk(&mut self, index: usize, addresses: &mut Addresses) -> Result<(), Error> {
        let item = &mut self.items[index];
        let qmp = &mut self.link.qmp;
        item.touched = Touched::Records;
        let intent = Record::Intent(item.intent.clone()).to_opaque();
        item.set = qmp.add_fd(item.source.claim()?, None, &intent).await?.set;
        fault::point("after-add-fd").await?;
        self.watch.lap("add_fd");

        item.touched = Touched::Disk;
        let added = disk::add_node(qmp, &item.id, &item.source, self.verb.read_only, item.set).await;
        if matches!(added, Err(Error::AnotherRun { .. })) {
            item.touched = Touched::Records;
        }
        added?;
        fault::point("after-blockdev-add").await?;
        self.watch.lap("blockdev_add");

        item.address = disk::add_device(qmp, &item.id, &item.source, &item.controller.id, addresses).await?;
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

    /// Asks the guest to make all volumes usable.
    async fn attach(&mut self) -> Result<(), Error> {
        let remaining = self.deadline.remaining();
        let guest = (remaining - (remaining / 4).min(UNDO_SHARE)).min(agent::LONGEST_REQUEST);
        let reply_by = Deadline::after(guest + REPLY_GRACE).min(Deadline::after((guest + remaining) / 2));
        let request = AttachRequest {
            attachments: self.items.iter().map(|item| self.attachment(item)).collect(),
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
            self.watch
                .record(format!("guest_{}", printable(&stage.name)), Duration::from_micros(stage.micros));
        }
        if reply.attached.len() != self.items.len() {
            return Err(answer("another number of volumes"));
        }
        for (item, attached) in self.items.iter_mut().zip(reply.attached) {
            check_answer(item, &attached)?;
            item.attached = Some(attached);
        }
        self.watch.lap("attach");
        Ok(())
    }

    fn attachment(&self, item: &Item) -> Attachment {
        let pci = item.controller.pci_address.as_deref().unwrap_or_default();
        match &item.plugged {
            Some(committed) => undo::attachment(&committed.intent, pci, item.address, committed.size),
            None => undo::attachment(&item.intent, pci, item.address, item.source.size),
        }
    }

    /// Writes what was done beside each intent. With this a volume is plugged; without it a later run takes it back.
    async fn write_placements(&mut self) -> Result<(), Error> {
        for item in &self.items {
            let Some(attached) = &item.attached else { continue };
            if item.plugged.is_some() && attached.unchanged {
                continue;
            }
            let null = OpenOptions::new().write(true).open("/dev/null");
            let null = null.map_err(|e| Error::system("open", "/dev/null", e))?;
            let record = Record::Placement(placement(item, attached)).to_opaque();
            let set = item.plugged.as_ref().map_or(item.set, |committed| committed.carrier.set);
            self.link.qmp.add_fd(null, Some(set), &record).await?;
            if let Some(PassedFd { set, fd }) = item.plugged.as_ref().map(|committed| committed.carrier) {
                self.link.qmp.execute("remove-fd", json!({"fdset-id": set, "fd": fd})).await?;
            }
        }
        fault::point("after-outcome").await?;
        self.watch.lap("outcome");
        Ok(())
    }

    fn report(self) -> Result<Report, Error> {
        let unchanged = |item: &Item| item.attached.as_ref().is_some_and(|attached| attached.unchanged);
        let result = if self.items.iter().all(unchanged) { Outcome::Unchanged } else { Outcome::Attached };
        let volumes = self.items.iter().filter_map(|item| {
            let placement = placement(item, item.attached.as_ref()?);
            Some(Volume {
                id: item.id.to_string(),
                sandbox: self.place.sandbox.clone(),
                container: item.intent.container.clone(),
                device_path: item.intent.path.clone(),
                source: item.source.given.clone(),
                source_device: item.source.device.clone(),
                size: item.plugged.as_ref().map_or(item.source.size, |committed| committed.size),
                read_only: self.verb.read_only,
                shared: false,
                scsi: Scsi { controller: placement.controller, target: placement.target, lun: placement.lun },
                guest_device: placement.guest_device,
                device_number: format!("{}:{}", placement.major, placement.minor),
                device_filter: placement.filter,
                node: placement.node,
                throttle: item.limits,
            })
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
