//! Device programs on [cgroup
//! v2](https://docs.kernel.org/admin-guide/cgroup-v2.html#device-controller): every program of a
//! container's group and of the groups above must allow an access.
//!
//! So a further program cannot allow anything, and a container's own program is replaced by
//! [`Prologue`] + itself, in one step. Programs of the groups above are other containers' as well
//! and are never changed; and nothing is attached where there is no program. A container that
//! attaches programs to groups that it made itself restricts itself, which is left as it is.
//!
//! A runtime may replace the program at any time. Then the kernel reports that the program to
//! replace is not attached any more (ENOENT), and everything is read again. Access that was lost
//! with a program that the runtime replaced is added again by the next Attach.

use std::{
    fs::File,
    os::unix::fs::MetadataExt as _,
    sync::{Mutex, PoisonError},
};

use super::{
    access::Access,
    attached::AttachedProgram,
    bpf::{self, Loaded},
    grant::{self, Grant},
    insn::Instruction,
    program::Program,
    prologue::Prologue,
};
use crate::{
    block::DeviceNumber,
    error::{BoxedError, Error, Result, Unsupported},
    kernel_file,
};

pub use super::group::Group;

/// How often another process may be faster.
const ATTEMPTS: usize = 8;

/// Requests of this process change programs one after the other: otherwise they would have to retry
/// because of each other.
static TURN: Mutex<()> = Mutex::new(());

/// The number of a disk is not known before the guest has the disk; until then, programs are
/// checked with this one (the kernel's `sdp`).
const SAMPLE: DeviceNumber = DeviceNumber { major: 8, minor: 240 };

/// Access that was added on a device.
#[derive(Debug, PartialEq, Eq)]
struct Added {
    group: Group,
    number: DeviceNumber,
    /// What an earlier disk of this number left.
    before: Access,
}

impl grant::Added for Added {
    fn roll_back(&self) -> Result<()> {
        self.group
            .unless_gone((), || self.group.change(self.number, self.before, &mut |_, _| Ok(())))
    }
}

/// All programs that decide, as they are now.
struct State {
    directory: File,
    /// Whether a single own program can be replaced.
    multi: bool,
    own: Vec<AttachedProgram>,
    above: Vec<AttachedProgram>,
}

impl Group {
    /// Checks whether the programs can be changed so that the container can open a disk. Changes
    /// nothing.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<()> {
        let state = self.read()?;
        self.check_above(&state, SAMPLE, Access::READ)?;
        let needs_change =
            |own: &&AttachedProgram| !own.allows_by_itself(SAMPLE, Access::READ_WRITE);
        state.own.iter().filter(needs_change).try_for_each(|own| match is_hardened() {
            true => Err(Unsupported::BpfBlinded.into()),
            false => self.check_own(&state, own),
        })
    }

    /// Lets the container open a block device with exactly this access.
    ///
    /// # Errors
    /// A program cannot be changed, or another process keeps changing it; `grant` has what was done
    /// until then.
    pub fn allow(&self, number: DeviceNumber, access: Access, grant: &mut Grant) -> Result<()> {
        self.change(number, access, &mut |state, needed| {
            self.check_above(state, number, access)?;
            grant.allowed_before = state.own.iter().all(|own| own.allows_by_itself(number, access));
            if needed {
                let before = granted(&state.own, number);
                let group = self.clone();
                grant.added.push(Box::new(Added { group, number, before }));
            }
            Ok(())
        })
    }

    /// Whether the container can open a block device with this access.
    ///
    /// # Errors
    /// The group does not exist, or the query is not permitted; or a program cannot be read, and no
    /// other refuses.
    pub fn allows(&self, number: DeviceNumber, access: Access) -> Result<bool> {
        let state = self.read()?;
        let mut unreadable = None;
        for attached in state.own.iter().chain(&state.above) {
            match &attached.program {
                Ok(program) if !program.allows_block(number, access) => return Ok(false),
                Ok(_) => {}
                Err(why) => unreadable = Some(why.clone()),
            }
        }
        unreadable.map_or(Ok(true), |why| Err(why.into()))
    }

    /// Revokes what [`Group::allow`] granted, and returns it.
    ///
    /// # Errors
    /// The kernel refuses. A group that is gone is fine.
    pub fn revoke(&self, number: DeviceNumber) -> Result<Access> {
        self.unless_gone(Access::default(), || {
            let mut had = Access::default();
            self.change(number, Access::default(), &mut |state, _| {
                had = had.with(granted(&state.own, number));
                Ok(())
            })?;
            Ok(had)
        })
    }

    /// Replaces programs until reading them shows the wanted access. `before_change` gets the state
    /// each time, and whether something is about to be changed.
    fn change(
        &self,
        number: DeviceNumber,
        access: Access,
        before_change: &mut dyn FnMut(&State, bool) -> Result<()>,
    ) -> Result<()> {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // One more read than changes: the last change is read back, too.
        for _ in 0..=ATTEMPTS {
            let state = self.read()?;
            let mut plans = Vec::new();
            for own in &state.own {
                if let Some(prologue) = own.change(number, access) {
                    plans.push((own, prologue));
                }
            }
            before_change(&state, !plans.is_empty())?;
            if plans.is_empty() {
                return Ok(());
            }
            self.replace(&state, &plans)?;
        }
        Err(self.contended())
    }

    /// Loads all programs before it attaches the first. Stops where another process was faster.
    fn replace(&self, state: &State, plans: &[(&AttachedProgram, Prologue)]) -> Result<()> {
        plans.iter().try_for_each(|(old, _)| self.check_own(state, old))?;
        let mut loaded = Vec::with_capacity(plans.len());
        for (old, prologue) in plans {
            loaded.push(self.load(old, prologue)?);
        }
        for (new, (old, _)) in loaded.iter().zip(plans) {
            match new.attach(&state.directory, &old.loaded) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
                result => result.map_err(self.failed("BPF_PROG_ATTACH"))?,
            }
        }
        Ok(())
    }

    fn load(&self, old: &AttachedProgram, prologue: &Prologue) -> Result<Loaded> {
        let base = old.base.as_ref().map(Program::instructions).unwrap_or_default();
        let wanted: Vec<Instruction> = prologue.before(base);
        let new = Loaded::load(&wanted).map_err(self.failed("BPF_PROG_LOAD"))?;
        // A prologue that cannot be read back could not be removed again. Without a prologue there
        // is nothing to read back.
        if !prologue.is_empty() {
            let info = new.info().map_err(self.failed("BPF_OBJ_GET_INFO_BY_FD"))?;
            match info.instructions {
                Some(found) if found == wanted => {}
                _ if is_hardened() => return Err(Unsupported::BpfBlinded.into()),
                _ => return Err(Unsupported::BpfRewritten { program: old.id }.into()),
            }
        }
        Ok(new)
    }

    /// Checks whether the programs of the groups above allow the access.
    fn check_above(&self, state: &State, number: DeviceNumber, access: Access) -> Result<()> {
        match state.above.iter().find(|above| !above.allows(number, access)) {
            None => Ok(()),
            Some(AttachedProgram { program: Err(unreadable), .. }) => {
                Err(unreadable.clone().into())
            }
            Some(AttachedProgram { id, .. }) => {
                Err(Unsupported::BpfShared { program: *id, cgroup: self.group_of(*id) }.into())
            }
        }
    }

    /// Checks whether an own program can be replaced.
    fn check_own(&self, state: &State, own: &AttachedProgram) -> Result<()> {
        let program = own.program.as_ref().map_err(Unsupported::clone)?;
        if program.is_blinded() {
            return Err(Unsupported::BpfBlinded.into());
        }
        if !state.multi {
            return Err(Unsupported::BpfExclusive { cgroup: self.name() }.into());
        }
        let inode = state.directory.metadata().map_err(Error::system("fstat", &self.name()))?.ino();
        match bpf::is_linked(own.id, inode).map_err(self.failed("BPF_LINK_GET_NEXT_ID"))? {
            true => Err(Unsupported::BpfLink { program: own.id }.into()),
            false => Ok(()),
        }
    }

    /// Reads all programs, and repeats that until nothing changes in between.
    fn read(&self) -> Result<State> {
        for _ in 0..ATTEMPTS {
            let directory = self.open()?;
            let mut above = self.query(&directory, true)?.ids;
            let own =
                if self.shared { bpf::Query::default() } else { self.query(&directory, false)? };
            // A program may be attached above as well.
            let remove =
                |id: &u32| above.iter().position(|all| all == id).map(|index| above.remove(index));
            let consistent = own.ids.iter().map(remove).all(|found| found.is_some());
            if consistent
                && let (Some(own_programs), Some(above)) =
                    (self.open_all(&own.ids)?, self.open_all(&above)?)
            {
                return Ok(State { directory, multi: own.multi, own: own_programs, above });
            }
        }
        Err(self.contended())
    }

    /// `None`: one of them is gone.
    fn open_all(&self, ids: &[u32]) -> Result<Option<Vec<AttachedProgram>>> {
        let mut programs = Vec::with_capacity(ids.len());
        for &id in ids {
            match AttachedProgram::open(id) {
                Ok(program) => programs.push(program),
                Err((_, error)) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
                Err((call, error)) => return Err(self.failed(call)(error)),
            }
        }
        Ok(Some(programs))
    }

    fn contended(&self) -> BoxedError {
        BoxedError::from(Error::FilterContended { cgroup: self.name(), attempts: ATTEMPTS })
    }
}

/// The access that our prologues allow on a device.
fn granted(own: &[AttachedProgram], number: DeviceNumber) -> Access {
    own.iter().fold(Access::default(), |access, own| access.with(own.prologue.access(number)))
}

/// Whether the kernel hides the instructions of programs that are loaded from now on.
fn is_hardened() -> bool {
    let level = kernel_file::read("/proc/sys/net/core/bpf_jit_harden");
    level.is_ok_and(|level| level.trim_ascii() == b"2")
}

#[cfg(test)]
#[path = "v2_tests.rs"]
mod tests;
