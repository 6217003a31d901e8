//! One row of the table: a run is disturbed at one fault point, `list` reports the state, a remedy
//! is taken, and the state after it is checked.

use std::time::Duration;

use nix::{sys::signal::Signal, unistd::Pid};
use vm_harness::{Container, ContainerOptions, EcrRuntime, Volume};

use super::{
    background_run::{BackgroundRun, signal},
    disturbance::Disturbance,
    fault_point::{FaultPoint, Verb},
    fixture::{Fixture, check_claimable, succeeded, summary},
    remedy::Remedy,
    volume_state::VolumeState,
};

/// The timeout of a run whose QEMU is stopped, with KVM.
const SHORT: Duration = Duration::from_secs(1);

/// The results in a row of the table.
#[derive(Debug, Default)]
pub(super) struct Row {
    /// How the disturbed run ended.
    pub(super) run: String,
    /// The state that `list` reported then.
    pub(super) listed: String,
    /// How the remedy ended.
    pub(super) remedy: String,
    /// The state at the end.
    pub(super) end: String,
}

/// One case, in a fixture without volumes.
pub(super) struct Case<'a> {
    pub(super) fixture: &'a Fixture,
    pub(super) point: FaultPoint,
    pub(super) disturbance: Disturbance,
    pub(super) remedy: Remedy,
}

impl Case<'_> {
    /// Runs the case. `row` has the results so far, also if this returns an error.
    pub(super) async fn run(&self, row: &mut Row) -> Result<(), String> {
        let fixture = self.fixture;
        let container = match self.disturbance.ends_container() {
            true => fixture.sandbox.try_start_container(&ContainerOptions::default()).await,
            false => Ok(fixture.container.clone()),
        };
        let container = container.map_err(|error| error.chain())?;
        let volume = fixture.kind.volume();
        if self.point.verb == Verb::HotUnplug {
            let plug =
                fixture.command(Verb::HotPlug, &container, &volume, self.path(), "").run().await;
            succeeded("hot-plug", &plug)?;
        }
        match self.disturbance {
            Disturbance::QemuKilled | Disturbance::AgentKilled => {
                self.end_vm(&container, &volume, row).await
            }
            Disturbance::SameCommand
            | Disturbance::SameCommandAfterKill
            | Disturbance::OppositeCommand
            | Disturbance::SamePath
            | Disturbance::OtherVolume => self.run_concurrently(&container, &volume, row).await,
            _ => {
                self.disturb(&container, &volume, row).await?;
                self.take_remedy(&container, &volume, row).await
            }
        }
    }

    fn command(&self, container: &Container, volume: &Volume, action: &str) -> EcrRuntime {
        let faults = format!("{}={action}", self.point.name);
        self.fixture.command(self.point.verb, container, volume, self.path(), &faults)
    }

    /// Runs the command, disturbs it, and checks the state that `list` reports after it.
    async fn disturb(
        &self,
        container: &Container,
        volume: &Volume,
        row: &mut Row,
    ) -> Result<(), String> {
        let (fixture, FaultPoint { verb, name, .. }) = (self.fixture, self.point);
        let finished = match self.disturbance {
            Disturbance::RunKilled => {
                let killed = self.command(container, volume, "kill").run().await;
                if killed.status != 128 + 9 {
                    return Err(format!("the run was not killed at {name}"));
                }
                // The guest rolls back what was not committed.
                let idle = fixture.sandbox.until_plugin_is_idle().await;
                idle.map_err(|error| error.chain())?;
                killed
            }
            Disturbance::PluginPanics => {
                fixture.set_guest_faults(&format!("{name}=panic\n")).await?;
                let failed = fixture.command(verb, container, volume, self.path(), "").run().await;
                fixture.set_guest_faults("").await?;
                if failed.status == 0 {
                    return Err(format!("the run never reached {name}"));
                }
                failed
            }
            Disturbance::QemuStopped => {
                let limit = format!("{}s", fixture.sandbox.guest().scaled(SHORT).as_secs());
                let command = self.command(container, volume, "stop").args(["--timeout", &limit]);
                let run = self.start_and_stop(&command).await?;
                let qemu = self.qemu();
                signal(qemu, Signal::SIGSTOP)?;
                let finished = run.resume(fixture).await;
                signal(qemu, Signal::SIGCONT)?;
                finished?
            }
            _ => {
                let run = self.start_and_stop(&self.command(container, volume, "stop")).await?;
                container.kill().await.map_err(|error| error.chain())?;
                if self.disturbance == Disturbance::ContainerRemoved {
                    container.remove().await.map_err(|error| error.chain())?;
                    fixture.sandbox.run_directory().remove_container(container.id());
                }
                run.resume(fixture).await?
            }
        };
        row.run = summary(&finished);
        let state = fixture.state().await?;
        row.listed = state.to_string();
        let expected = match self.disturbance {
            Disturbance::RunKilled | Disturbance::PluginPanics => state == self.point.leaves,
            // The guest may have executed all or a part of the requests after the run had ended.
            Disturbance::QemuStopped => state != VolumeState::Stale,
            _ => matches!(state, VolumeState::Gone | VolumeState::Stale),
        };
        if expected { Ok(()) } else { Err(format!("list must not report {state}")) }
    }

    /// Takes the remedy, and checks the state after it.
    async fn take_remedy(
        &self,
        container: &Container,
        volume: &Volume,
        row: &mut Row,
    ) -> Result<(), String> {
        let (fixture, verb) = (self.fixture, self.point.verb);
        let was_gone = row.listed == VolumeState::Gone.to_string();
        let finished = match self.remedy {
            Remedy::Again => fixture.command(verb, container, volume, self.path(), "").run().await,
            Remedy::Unplug => {
                fixture.command(Verb::HotUnplug, container, volume, self.path(), "").run().await
            }
            Remedy::Repair => fixture.sandbox_command("repair").run().await,
            Remedy::None => return Err("this disturbance needs a remedy".to_owned()),
        };
        row.remedy = summary(&finished);
        let is_unplug = self.remedy == Remedy::Unplug
            || (self.remedy == Remedy::Again && verb == Verb::HotUnplug);
        // A hot-unplug of a volume that is gone fails with exit status 3.
        if finished.status != 0 && !(is_unplug && was_gone && finished.status == 3) {
            return Err(finished.stdout);
        }
        let end = fixture.state().await?;
        row.end = end.to_string();
        let expected = match self.remedy {
            Remedy::Again => Some(verb.end()),
            Remedy::Unplug => Some(VolumeState::Gone),
            _ => None,
        };
        if expected.is_some_and(|expected| expected != end) {
            return Err(format!("the volume is {end} after this remedy"));
        }
        match end {
            VolumeState::Attached => {
                fixture.check_attached(container, volume, self.path()).await?;
                fixture.unplug(container, volume, self.path()).await?;
            }
            VolumeState::Gone => {}
            VolumeState::Incomplete | VolumeState::Stale => {
                return Err("neither attached nor gone".to_owned());
            }
        }
        if self.disturbance == Disturbance::ContainerKilled {
            container.remove().await.map_err(|error| error.chain())?;
            fixture.sandbox.run_directory().remove_container(container.id());
        }
        fixture.check_gone(volume).await
    }

    /// Ends the VM during the run, and checks that the commands report that.
    async fn end_vm(
        &self,
        container: &Container,
        volume: &Volume,
        row: &mut Row,
    ) -> Result<(), String> {
        let fixture = self.fixture;
        let run = self.start_and_stop(&self.command(container, volume, "stop")).await?;
        if self.disturbance == Disturbance::QemuKilled {
            signal(self.qemu(), Signal::SIGKILL)?;
        } else {
            fixture.sandbox.expect_kernel_fault();
            // No reply comes: the kernel panics, as it does when PID 1 is killed.
            let _ = fixture.sandbox.observer().write("/proc/sysrq-trigger", "c").await;
        }
        let limit = fixture.sandbox.guest().scaled(Duration::from_secs(10));
        let ended = tokio::time::timeout(limit, fixture.sandbox.guest().ended()).await;
        ended.map_err(|_| format!("QEMU did not end within {limit:?}"))?;
        row.run = summary(&run.resume(fixture).await?);
        let verb = self.point.verb;
        let again = fixture.command(verb, container, volume, self.path(), "").run().await;
        let repair = fixture.sandbox_command("repair").run().await;
        row.remedy = format!("{}; repair {}", summary(&again), summary(&repair));
        if again.status != 14 || repair.status != 14 {
            return Err("without a VM both commands have to end with exit status 14".to_owned());
        }
        row.end = "gone with the VM".to_owned();
        check_claimable(volume)
    }

    /// Runs another command at the same time, and checks that both succeed, or that the one that
    /// conflicts is refused.
    async fn run_concurrently(
        &self,
        container: &Container,
        volume: &Volume,
        row: &mut Row,
    ) -> Result<(), String> {
        let (fixture, verb) = (self.fixture, self.point.verb);
        let other_volume = fixture.kind.volume();
        let [path, second_path] = fixture.kind.paths();
        let opposite = match verb {
            Verb::HotPlug => Verb::HotUnplug,
            Verb::HotUnplug => Verb::HotPlug,
        };
        let (done, again) = match verb {
            Verb::HotPlug => ("attached", "unchanged"),
            Verb::HotUnplug => ("detached", "exit 3 (volume_not_found)"),
        };
        // The other command, its possible results, the state of the volume at the end, and the
        // path of the other volume then.
        let (other, results, end, other_path) = match self.disturbance {
            Disturbance::SameCommand => ((verb, volume, path), vec![again], verb.end(), None),
            // The killed run had done everything, or nothing, or the other command completes it.
            Disturbance::SameCommandAfterKill => {
                ((verb, volume, path), vec![done, again], verb.end(), None)
            }
            Disturbance::OppositeCommand => {
                ((opposite, volume, path), vec!["attached", "detached"], verb.start(), None)
            }
            Disturbance::SamePath => (
                (verb, &other_volume, path),
                vec!["exit 4 (path_taken)", "exit 4 (path_holds_volume)"],
                verb.end(),
                None,
            ),
            _ => (
                (Verb::HotPlug, &other_volume, second_path),
                vec!["attached"],
                verb.end(),
                Some(second_path),
            ),
        };
        let run = self.start_and_stop(&self.command(container, volume, "stop")).await?;
        let other = fixture.command(other.0, container, other.1, other.2, "").start();
        let other = BackgroundRun::new(other)?;
        // The other command sleeps only to wait for the lock.
        other.until_state(fixture, 'S').await?;
        if self.disturbance == Disturbance::SameCommandAfterKill {
            signal(run.process, Signal::SIGKILL)?;
        }
        let (run, other) = tokio::try_join!(run.resume(fixture), other.wait(fixture))?;
        row.run = summary(&run);
        row.remedy = format!("other command: {}", summary(&other));
        if self.disturbance != Disturbance::SameCommandAfterKill && row.run != done {
            return Err(run.stdout);
        }
        if !results.contains(&summary(&other).as_str()) {
            return Err(other.stdout);
        }
        row.end = end.to_string();
        if let Some(other_path) = other_path {
            fixture.check_attached(container, &other_volume, other_path).await?;
        }
        if end == VolumeState::Attached {
            fixture.check_attached(container, volume, path).await?;
            fixture.unplug(container, volume, path).await?;
        }
        if let Some(other_path) = other_path {
            fixture.unplug(container, &other_volume, other_path).await?;
        }
        check_claimable(&other_volume)?;
        fixture.check_gone(volume).await
    }

    /// The path of the volume in the container.
    fn path(&self) -> &'static str {
        self.fixture.kind.paths()[0]
    }

    fn qemu(&self) -> Pid {
        Pid::from_raw(self.fixture.sandbox.guest().qemu_id().cast_signed())
    }

    /// Starts a command that stops itself at the fault point, and waits until it has stopped.
    async fn start_and_stop(&self, command: &EcrRuntime) -> Result<BackgroundRun, String> {
        let run = BackgroundRun::new(command.start())?;
        run.until_state(self.fixture, 'T').await?;
        Ok(run)
    }
}
