//! Device programs on [cgroup
//! v2](https://docs.kernel.org/admin-guide/cgroup-v2.html#device-controller): every program of a
//! container's group and of the groups above must allow an access.
//!
//! So no further program can widen anything, and a container's own one is exchanged for
//! [`Prologue`] + itself, in one step. Programs above it are other containers' as well and are
//! never changed; nor is anything attached where there is none. A container that attaches programs
//! to groups of its own making restricts itself, and that is left as it is.
//!
//! A runtime may exchange the program at any time. The kernel tells (what was to be exchanged is
//! not there any more), and then everything is read anew. What a reload by the runtime took away
//! comes back with the next Attach.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use super::{
    Added, Grant, Rights,
    bpf::{self, Loaded},
    member::Member,
    program::{Instruction, Program},
    prologue::Prologue,
};
use crate::{
    block::DeviceNumber,
    error::{Error, Result, Unsupported},
};

/// How often somebody else may be faster.
const ATTEMPTS: usize = 8;

/// Requests of this process take turns: they would only be in each other's way.
static TURN: Mutex<()> = Mutex::new(());

/// A disk's number is not known before it is there; until then, programs are asked about this one
/// (the kernel's `sdp`).
const SAMPLE: DeviceNumber = DeviceNumber { major: 8, minor: 240 };

/// A cgroup with those above it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    root: PathBuf,
    /// Below the root.
    path: PathBuf,
    /// Other containers are in it, too: its programs are not ours to change.
    shared: bool,
}

/// A right that was given on a device.
#[derive(Debug, PartialEq, Eq)]
pub struct Given {
    group: Group,
    number: DeviceNumber,
    /// What an earlier disk of this number had left.
    before: Rights,
}

impl Given {
    /// Takes it away again.
    ///
    /// # Errors
    /// The kernel refuses. A group that is gone is fine.
    pub fn undo(&self) -> Result<()> {
        self.group.unless_gone((), || self.group.change(self.number, self.before, |_, _| Ok(())))
    }
}

/// All programs that decide, as they are now.
struct State {
    directory: File,
    /// Each of the own ones can be exchanged.
    multi: bool,
    own: Vec<Member>,
    above: Vec<Member>,
}

impl Group {
    /// The group `path` of the hierarchy that is mounted at `root`.
    pub fn new(root: &Path, path: &Path) -> Group {
        Group { root: root.to_owned(), path: path.to_owned(), shared: path.as_os_str().is_empty() }
    }

    /// A group whose programs must not be changed.
    pub fn shared(root: &Path, path: &Path) -> Group {
        Group { shared: true, ..Group::new(root, path) }
    }

    /// Ids of all programs that decide.
    ///
    /// # Errors
    /// There is no such group, or no right to ask.
    pub fn programs(&self) -> Result<Vec<u32>> {
        self.query(&self.open()?, true).map(|attached| attached.ids)
    }

    /// Whether the programs can be changed so that the container could open a disk. Changes
    /// nothing.
    ///
    /// # Errors
    /// Says why not.
    pub fn check(&self) -> Result<()> {
        let state = self.read()?;
        self.check_above(&state, SAMPLE, Rights::READ)?;
        let change = |own: &&Member| !own.allows_by_itself(SAMPLE, Rights::READ_WRITE);
        state.own.iter().filter(change).try_for_each(|own| match hardened() {
            true => Err(Unsupported::BpfBlinded.into()),
            false => self.check_member(&state, own),
        })
    }

    /// Lets the container open a block device with exactly these rights.
    ///
    /// # Errors
    /// A program cannot be changed, or is changed by somebody else all the time; `grant` tells what
    /// was done until then.
    pub fn allow(&self, number: DeviceNumber, rights: Rights, grant: &mut Grant) -> Result<()> {
        self.change(number, rights, |state, needed| {
            self.check_above(state, number, rights)?;
            grant.allowed_before = state.own.iter().all(|own| own.allows_by_itself(number, rights));
            if needed {
                let before = rights_of(&state.own, number);
                grant.added.push(Added::V2(Given { group: self.clone(), number, before }));
            }
            Ok(())
        })
    }

    /// Whether the container can open a block device with these rights: not where a program cannot
    /// be read.
    ///
    /// # Errors
    /// There is no such group, or no right to ask.
    pub fn allows(&self, number: DeviceNumber, rights: Rights) -> Result<bool> {
        let state = self.read()?;
        Ok(state.own.iter().chain(&state.above).all(|program| program.allows(number, rights)))
    }

    /// Takes away what [`Group::allow`] gave, and says what that was.
    ///
    /// # Errors
    /// The kernel refuses. A group that is gone is fine.
    pub fn revoke(&self, number: DeviceNumber) -> Result<Rights> {
        self.unless_gone(Rights::default(), || {
            let mut had = Rights::default();
            self.change(number, Rights::default(), |state, _| {
                had = had.with(rights_of(&state.own, number));
                Ok(())
            })?;
            Ok(had)
        })
    }

    /// Exchanges programs until reading them shows what is wanted. `look` is told each time what is
    /// there, and whether something is about to be changed.
    fn change(
        &self,
        number: DeviceNumber,
        rights: Rights,
        mut look: impl FnMut(&State, bool) -> Result<()>,
    ) -> Result<()> {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // One more look than changes: the last one is read back, too.
        for _ in 0..=ATTEMPTS {
            let state = self.read()?;
            let plan = |own| Some((own, Member::change(own, number, rights)?));
            let plans: Vec<_> = state.own.iter().filter_map(plan).collect();
            look(&state, !plans.is_empty())?;
            if plans.is_empty() {
                return Ok(());
            }
            self.exchange(&state, &plans)?;
        }
        Err(self.contended())
    }

    /// Loads all before it attaches the first. Stops where somebody else was faster.
    fn exchange(&self, state: &State, plans: &[(&Member, Prologue)]) -> Result<()> {
        plans.iter().try_for_each(|(old, _)| self.check_member(state, old))?;
        let load = |(old, prologue): &(&Member, Prologue)| self.load(old, prologue);
        let loaded: Vec<Loaded> = plans.iter().map(load).collect::<Result<_>>()?;
        for (new, (old, _)) in loaded.iter().zip(plans) {
            match new.attach(&state.directory, &old.loaded) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
                result => result.map_err(self.failed("BPF_PROG_ATTACH"))?,
            }
        }
        Ok(())
    }

    fn load(&self, old: &Member, prologue: &Prologue) -> Result<Loaded> {
        let base = old.base.as_ref().map(Program::instructions).unwrap_or_default();
        let wanted: Vec<Instruction> = prologue.before(base);
        let new = Loaded::load(&wanted).map_err(self.failed("BPF_PROG_LOAD"))?;
        // What could not be found again could not be taken away again. There is nothing to be found
        // without a prologue.
        if !prologue.is_empty() {
            let info = new.info().map_err(self.failed("BPF_OBJ_GET_INFO_BY_FD"))?;
            match info.instructions {
                Some(found) if found == wanted => {}
                _ if hardened() => return Err(Unsupported::BpfBlinded.into()),
                _ => return Err(Unsupported::BpfRewritten { program: old.id }.into()),
            }
        }
        Ok(new)
    }

    fn check_above(&self, state: &State, number: DeviceNumber, rights: Rights) -> Result<()> {
        match state.above.iter().find(|above| !above.allows(number, rights)) {
            None => Ok(()),
            Some(Member { program: Err(unreadable), .. }) => Err(unreadable.clone().into()),
            Some(Member { id, .. }) => {
                Err(Unsupported::BpfShared { program: *id, cgroup: self.holder(*id) }.into())
            }
        }
    }

    fn check_member(&self, state: &State, own: &Member) -> Result<()> {
        let program = own.program.as_ref().map_err(Unsupported::clone)?;
        if program.is_blinded() {
            return Err(Unsupported::BpfBlinded.into());
        }
        if !state.multi {
            return Err(Unsupported::BpfExclusive { cgroup: name(&self.path) }.into());
        }
        let inode =
            state.directory.metadata().map_err(Error::system("fstat", name(&self.path)))?.ino();
        match bpf::is_linked(own.id, inode).map_err(self.failed("BPF_LINK_GET_NEXT_ID"))? {
            true => Err(Unsupported::BpfLink { program: own.id }.into()),
            false => Ok(()),
        }
    }

    /// Reads until nothing changes in between.
    fn read(&self) -> Result<State> {
        for _ in 0..ATTEMPTS {
            let directory = self.open()?;
            let mut above = self.query(&directory, true)?.ids;
            let own =
                if self.shared { bpf::Attached::default() } else { self.query(&directory, false)? };
            // A program may be attached above as well.
            let remove =
                |id: &u32| above.iter().position(|all| all == id).map(|index| above.remove(index));
            let consistent = own.ids.iter().map(remove).all(|found| found.is_some());
            if consistent
                && let (Some(own_programs), Some(above)) =
                    (self.members(&own.ids)?, self.members(&above)?)
            {
                return Ok(State { directory, multi: own.multi, own: own_programs, above });
            }
        }
        Err(self.contended())
    }

    /// `None`: one of them is gone.
    fn members(&self, ids: &[u32]) -> Result<Option<Vec<Member>>> {
        let mut members = Vec::with_capacity(ids.len());
        for &id in ids {
            match Member::open(id) {
                Ok(member) => members.push(member),
                Err((_, error)) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
                Err((call, error)) => return Err(self.failed(call)(error)),
            }
        }
        Ok(Some(members))
    }

    fn open(&self) -> Result<File> {
        let path = self.directory();
        File::open(&path).map_err(Error::system("open", path.display().to_string()))
    }

    /// A kernel without such programs has none.
    fn query(&self, directory: &File, effective: bool) -> Result<bpf::Attached> {
        match bpf::query(directory.as_fd(), effective) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                Ok(bpf::Attached::default())
            }
            result => result.map_err(self.failed("BPF_PROG_QUERY")),
        }
    }

    fn directory(&self) -> PathBuf {
        self.root.join(&self.path)
    }

    /// The group that a program is attached to, for a message.
    fn holder(&self, program: u32) -> String {
        let attached = |path: &&Path| {
            let group = Group::new(&self.root, path);
            let ids = group.open().and_then(|directory| group.query(&directory, false));
            ids.is_ok_and(|attached| attached.ids.contains(&program))
        };
        name(self.path.ancestors().find(attached).unwrap_or(&self.path))
    }

    fn unless_gone<T>(&self, gone: T, work: impl FnOnce() -> Result<T>) -> Result<T> {
        match work() {
            Err(_) if !self.directory().exists() => Ok(gone),
            result => result,
        }
    }

    fn failed(&self, call: &'static str) -> impl FnOnce(io::Error) -> Error {
        let cgroup = name(&self.path);
        move |source| match source.raw_os_error() {
            Some(libc::EPERM) => Unsupported::BpfDenied { call }.into(),
            _ => {
                Error::System { call, subject: format!("the device programs of {cgroup}"), source }
            }
        }
    }

    fn contended(&self) -> Error {
        Error::FilterContended { cgroup: name(&self.path), attempts: ATTEMPTS }
    }
}

fn rights_of(own: &[Member], number: DeviceNumber) -> Rights {
    own.iter().fold(Rights::default(), |rights, own| rights.with(own.prologue.rights(number)))
}

fn name(path: &Path) -> String {
    format!("/{}", path.display())
}

/// Whether programs that are loaded from now on cannot be read.
fn hardened() -> bool {
    let level = fs::read_to_string("/proc/sys/net/core/bpf_jit_harden");
    level.is_ok_and(|level| level.trim() == "2")
}

#[cfg(test)]
#[path = "v2_tests.rs"]
mod tests;
