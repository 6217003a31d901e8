//! What a source consists of, and whether something else uses a part of that. An exclusive open of
//! a source detects its own users only: a loop device claims nothing of the device or file below
//! it, and neither do two paths to one disk claim each other. Therefore each layer is checked as
//! if it were the source: the file or device below a loop device, the devices below device mapper,
//! md and DRBD, the disk of a partition, the other paths to a SCSI or NVMe disk.

use std::{
    cell::OnceCell,
    fs::{self, OpenOptions},
    io,
    ops::Range,
    os::{
        fd::BorrowedFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::sys::stat::major;

use super::{
    block_device::{self, BlockDevice, NamedDisk, SYSFS},
    conflict::{Conflict, Problem},
    holders::{
        self, FileId, Holder,
        loop_device::{self, LoopDevice},
        opener::{Opener, Unseen, openers},
    },
    mountinfo, overlay, process, root_disk,
    search::{Search, TimeUp},
};
use crate::error::{Chain, Step};

/// Where kubelet keeps its state. It puts a loop device over each block volume of a pod, only to
/// keep the device from being replaced.
const KUBELET: &str = "/var/lib/kubelet";
/// The most layers of one source.
const MOST: usize = 4096;

/// A source that this process has open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OpenSource<'a> {
    pub(crate) file_id: FileId,
    pub(crate) read_only: bool,
    pub(crate) file: BorrowedFd<'a>,
    /// Its real path.
    pub(crate) path: Option<&'a Path>,
}

/// The block devices of this host, for sources that are examined together.
struct System {
    sysfs: PathBuf,
    loops: Vec<LoopDevice>,
    named_disks: OnceCell<Vec<NamedDisk>>,
}

impl System {
    fn new(sysfs: &Path, loops: Vec<LoopDevice>) -> Self {
        Self { sysfs: sysfs.to_owned(), loops, named_disks: OnceCell::new() }
    }

    fn named_disks(&self) -> io::Result<&[NamedDisk]> {
        if self.named_disks.get().is_none() {
            let _ = self.named_disks.set(block_device::named_disks(&self.sysfs)?);
        }
        Ok(self.named_disks.get().map(Vec::as_slice).unwrap_or_default())
    }

    /// Replaces what is known of the loop device `number`.
    fn set_loop(&mut self, number: u64, known: Option<LoopDevice>) {
        self.loops.retain(|other| other.number != number);
        self.loops.extend(known);
    }
}

/// A device or file with bytes of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Layer {
    file_id: FileId,
    /// The bytes of it that the source has.
    range: Range<u64>,
    reached: Reached,
    chain: Chain,
    path: PathBuf,
}

/// How a layer was reached from the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reached {
    /// It is the source.
    Source,
    /// It is below the loop device of this number.
    BelowLoop(u64),
    /// It is below a device that claims it: device mapper, md, DRBD.
    BelowClaim,
    /// It is another path to the same disk.
    OtherPath,
    /// It is kubelet's loop device over the source.
    Kubelet,
}

impl Layer {
    fn source(file_id: FileId) -> Self {
        let (chain, path) = (Chain::default(), PathBuf::new());
        Self { file_id, range: 0..u64::MAX, reached: Reached::Source, chain, path }
    }

    /// The layer of a block device that is reached from this one by `step`.
    fn device(&self, reached: Reached, step: Step, device: &BlockDevice) -> io::Result<Self> {
        let path = device.node()?;
        let chain = self.chain.then(step, path.clone());
        let file_id = FileId::Block(device.number);
        Ok(Self { file_id, range: 0..u64::MAX, reached, chain, path })
    }

    fn conflict(&self, problem: impl Into<Problem>) -> Conflict {
        Conflict { chain: self.chain.clone(), problem: problem.into() }
    }

    /// Returns the layers that this one consists of, and its other paths.
    fn next(&self, system: &System) -> Result<Vec<Self>, Problem> {
        let sysfs = &system.sysfs;
        let FileId::Block(number) = self.file_id else { return Ok(Vec::new()) };
        if matches!(self.reached, Reached::OtherPath | Reached::Kubelet) {
            return Ok(Vec::new());
        }
        let device = BlockDevice::find(sysfs, number)?;
        let disk = device.disk()?;
        let mut found = Vec::new();
        for slave in device.slaves()? {
            found.push(self.device(Reached::BelowClaim, Step::Below, &slave)?);
        }
        for other in device.other_paths(|| system.named_disks())? {
            found.push(self.device(Reached::OtherPath, Step::OtherPath, &other)?);
        }
        let loop_device = system.loops.iter().find(|known| known.number == disk.number);
        if let Some(LoopDevice { backing, path, .. }) = loop_device {
            let backing = backing.as_ref().filter(|backing| backing.is_certain);
            let backing = backing.ok_or_else(|| {
                Problem::Unchecked("what is below this loop device cannot be seen".to_owned())
            })?;
            let range = within(&backing.range, &within(&device.range()?, &self.range));
            let reached = Reached::BelowLoop(disk.number);
            let path = match backing.file_id {
                FileId::File(..) => path.clone(),
                FileId::Block(number) => BlockDevice::find(sysfs, number)?.node()?,
            };
            let chain = self.chain.then(Step::Below, path.clone());
            found.push(Self { file_id: backing.file_id, range, reached, chain, path });
        }
        Ok(found)
    }

    /// Whether the layer is free, as far as that can be found without a search of all processes.
    fn check(&self, search: &Search) -> Result<(), Problem> {
        match (self.file_id, self.reached) {
            (FileId::File(..), Reached::Source) => self.check_swap(),
            (FileId::File(device, _), _) => {
                self.check_file_system(device)?;
                self.check_swap()
            }
            (FileId::Block(_), Reached::Source) => Ok(()),
            // What claims it was reached before it. The root's disk may hold other volumes.
            (FileId::Block(number), Reached::BelowClaim) => match root_disk::has_root(number)? {
                true => Err(Problem::Root),
                false => Ok(()),
            },
            (FileId::Block(number), _) if root_disk::is_root(number)? => Err(Problem::Root),
            (FileId::Block(number), _) => self.check_claim(number, search),
        }
    }

    /// Checks that the file has no other name that has another device and inode number. Its path
    /// may lead elsewhere; then the mount tables say what has the number of its file system.
    fn check_file_system(&self, device: u64) -> Result<(), Problem> {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&self.path);
        let is_it = |file: &fs::File| {
            file.metadata().is_ok_and(|metadata| FileId::of(&metadata) == Some(self.file_id))
        };
        let is_stacked = match file.ok().filter(is_it) {
            Some(file) => overlay::is_stacked(file)?,
            None => mountinfo::of("self")?
                .iter()
                .any(|mount| mount.device == device && overlay::is_stacked_kind(&mount.kind)),
        };
        if is_stacked { Err(Problem::Stacked) } else { Ok(()) }
    }

    /// Checks that nothing has claimed the block device: no mount, in whatever mount namespace, no
    /// swap, no device on top of it, no process.
    fn check_claim(&self, number: u64, search: &Search) -> Result<(), Problem> {
        let is_it = |metadata: &fs::Metadata| FileId::of(metadata) == Some(self.file_id);
        let other = || Problem::Unchecked("its device node is another device".to_owned());
        // Opening another device could have an effect.
        if !is_it(&fs::metadata(&self.path)?) {
            return Err(other());
        }
        let flags = libc::O_EXCL | libc::O_NONBLOCK | libc::O_CLOEXEC;
        match OpenOptions::new().read(true).custom_flags(flags).open(&self.path) {
            Ok(file) if file.metadata()?.rdev() == number => Ok(()),
            Ok(_) => Err(other()),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                let except = match self.reached {
                    Reached::BelowLoop(number) => Some(number),
                    _ => None,
                };
                let path = Some(self.path.as_path());
                Err(Problem::Held(holders::holder_besides(self.file_id, path, except, search)))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Checks that the kernel does not swap to the file.
    fn check_swap(&self) -> Result<(), Problem> {
        let swaps = holders::swaps()?;
        let mut used = swaps.iter().map(FileId::at);
        if used.any(|used| used == Some(self.file_id)) {
            return Err(Problem::Held(Holder::Swap));
        }
        let has_lost = swaps.iter().any(|swap| FileId::at(swap).is_none());
        if has_lost
            && self.reached != Reached::Source
            && FileId::at(&self.path) != Some(self.file_id)
        {
            let why = "it was removed, and the kernel swaps to a file that was removed";
            return Err(Problem::Unchecked(why.to_owned()));
        }
        Ok(())
    }

    /// Returns kubelet's loop devices over the source.
    ///
    /// # Errors
    /// Another loop device has bytes of this layer.
    fn loops_above(&self, loops: &[LoopDevice]) -> Result<Vec<Self>, Problem> {
        let family = self.file_id.family()?;
        let is_above = |known: &&LoopDevice| {
            let backing = known.backing.as_ref();
            self.reached != Reached::BelowLoop(known.number)
                && backing.is_some_and(|backing| {
                    family.contains(&backing.file_id)
                        && (backing.file_id != self.file_id || overlap(&backing.range, &self.range))
                })
        };
        let mut kubelets = Vec::new();
        for known in loops.iter().filter(is_above) {
            let is_kubelets = self.reached == Reached::Source
                && matches!(self.file_id, FileId::Block(_))
                && known.path.starts_with(KUBELET);
            if !is_kubelets {
                return Err(Problem::Held(Holder::Loop(known.name.clone())));
            }
            let device = BlockDevice::find(Path::new(SYSFS), known.number)?;
            kubelets.push(self.device(Reached::Kubelet, Step::Above, &device)?);
        }
        Ok(kubelets)
    }
}

/// Returns the bytes `part` of the device that has the bytes `whole` of another one, as bytes of
/// that.
fn within(whole: &Range<u64>, part: &Range<u64>) -> Range<u64> {
    let at = |offset| whole.start.saturating_add(offset);
    at(part.start)..whole.end.min(at(part.end))
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// Returns the source and all layers of it.
fn layers(system: &System, source: FileId) -> Result<Vec<Layer>, Conflict> {
    let mut layers = vec![Layer::source(source)];
    let mut next = 0;
    while let Some(layer) = layers.get(next).cloned() {
        let found = layer.next(system).map_err(|problem| layer.conflict(problem))?;
        for found in found {
            let is_known = |known: &Layer| {
                known.file_id == found.file_id
                    && known.range == found.range
                    && (known.reached == found.reached || found.reached == Reached::OtherPath)
            };
            if !layers.iter().any(is_known) {
                layers.push(found);
            }
        }
        if layers.len() > MOST {
            let why = format!("it consists of more than {MOST} devices");
            return Err(layers[0].conflict(Problem::Unchecked(why)));
        }
        next += 1;
    }
    Ok(layers)
}

/// The layers of a source that was free.
#[derive(Debug, Default)]
pub(crate) struct Layers(Vec<Layer>);

impl Layers {
    /// Looks at all layers of a source, except for processes that have one of them open.
    fn examine(
        source: &OpenSource<'_>,
        system: &mut System,
        search: &Search,
    ) -> Result<Self, Conflict> {
        let unchecked = |error: io::Error| Layer::source(source.file_id).conflict(error);
        if let FileId::Block(number) = source.file_id {
            let device = BlockDevice::find(&system.sysfs, number);
            let disk = device.and_then(|device| device.disk()).map_err(unchecked)?.number;
            if major(disk) == loop_device::MAJOR {
                // The source's own descriptor is certain, and needs no device node.
                let known = loop_device::of(disk, source.file).map_err(unchecked)?;
                system.set_loop(disk, known);
            }
        }
        // One that cannot be asked may be over any of the layers.
        let is_unseen =
            |known: &&LoopDevice| !known.backing.as_ref().is_some_and(|backing| backing.is_certain);
        if let Some(LoopDevice { name, .. }) = system.loops.iter().find(is_unseen) {
            let why = format!("what is below the loop device {name} cannot be seen");
            return Err(Layer::source(source.file_id).conflict(Problem::Unchecked(why)));
        }
        let mut layers = layers(system, source.file_id)?;
        let mut next = 0;
        while let Some(layer) = layers.get(next).cloned() {
            let checked = layer.check(search).and_then(|()| layer.loops_above(&system.loops));
            layers.extend(checked.map_err(|problem| layer.conflict(problem))?);
            next += 1;
        }
        Ok(Self(layers))
    }

    /// Looks at the layers again: each must still be unclaimed. It neither lists all loop devices
    /// nor searches the descriptors of all processes, which takes longer.
    pub(crate) fn check_again(&self, search: &Search) -> Result<(), Conflict> {
        self.0
            .iter()
            .try_for_each(|layer| layer.check(search).map_err(|problem| layer.conflict(problem)))
    }

    fn families(&self) -> Result<Vec<Vec<FileId>>, Conflict> {
        let family = |layer: &Layer| layer.file_id.family().map_err(|e| layer.conflict(e));
        self.0.iter().map(family).collect()
    }

    /// Returns the paths of all layers: who could open them.
    fn paths(&self) -> impl Iterator<Item = PathBuf> {
        let paths = self.0.iter().map(|layer| layer.path.clone());
        paths.filter(|path| !path.as_os_str().is_empty())
    }
}

/// A source that was examined, with the family of each of its layers.
type Examined = Result<(Layers, Vec<Vec<FileId>>), Conflict>;

/// Returns the layers of each of `sources` in their order, or what conflicts with this use and did
/// not make the open fail. A loop device never makes it fail, and neither does a process that
/// opened the source without a claim. Of such processes, for a block device only those that run a
/// VM conflict (programs that inspect new devices open them for a moment), for a file all of them.
/// A reader does not conflict with another reader.
pub(crate) fn examine(
    sources: &[OpenSource<'_>],
    search: &Search,
) -> Vec<Result<Layers, Conflict>> {
    if sources.is_empty() {
        return Vec::new();
    }
    let loops = loop_device::all();
    let all = |problem: Problem| {
        let conflict =
            |source: &OpenSource<'_>| Err(Layer::source(source.file_id).conflict(problem.clone()));
        sources.iter().map(conflict).collect()
    };
    let loops = match loops {
        Ok(loops) => loops,
        Err(e) => return all(e.into()),
    };
    let mut system = System::new(Path::new(SYSFS), loops);
    let examined: Vec<Examined> = sources
        .iter()
        .map(|source| {
            let layers = Layers::examine(source, &mut system, search)?;
            let families = layers.families()?;
            Ok((layers, families))
        })
        .collect();
    let free = || examined.iter().flatten();
    let wanted = free().flat_map(|(_, families)| families.concat()).collect::<Vec<_>>();
    let nodes = wanted.iter().filter_map(|&member| holders::node(member));
    let paths = free().flat_map(|(layers, _)| layers.paths()).chain(nodes);
    let paths = paths.chain(sources.iter().filter_map(|source| source.path.map(Path::to_owned)));
    // One search for all layers of all sources.
    let openers = openers(&wanted, &paths.collect::<Vec<_>>(), search);
    let openers = match openers.and_then(|openers| relevant(openers, search)) {
        Ok(openers) => openers,
        Err(unseen) => return all(unseen.into()),
    };
    let opener = |source: &OpenSource<'_>, family: &Vec<FileId>| {
        let conflicts = |opener: &&Opener| opener.writes || !source.read_only;
        openers.iter().filter(|opener| family.contains(&opener.file_id)).find(conflicts)
    };
    let found = sources.iter().zip(examined);
    found
        .map(|(source, examined)| {
            let (layers, families) = examined?;
            for (layer, family) in layers.0.iter().zip(&families) {
                if let Some(opener) = opener(source, family) {
                    return Err(layer.conflict(Problem::Held(Holder::process(opener.pid))));
                }
            }
            Ok(layers)
        })
        .collect()
}

/// Returns the openers that are in the way of a use: of a device, those that run a VM.
fn relevant(openers: Vec<Opener>, search: &Search) -> Result<Vec<Opener>, Unseen> {
    let mut relevant = Vec::new();
    for opener in openers {
        let is_file = matches!(opener.file_id, FileId::File(..));
        let is_relevant = is_file
            || process::runs_a_vm(opener.pid, search).map_err(|TimeUp| {
                let process = Holder::process(opener.pid);
                Unseen::TimeUp(format!("the search of the open descriptors of {process}"))
            })?;
        if is_relevant {
            relevant.push(opener);
        }
    }
    Ok(relevant)
}

#[cfg(test)]
#[path = "backing_tests.rs"]
mod tests;
