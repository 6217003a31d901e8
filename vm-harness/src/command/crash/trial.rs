//! One row of the table: a run is disturbed behind one step, `list` tells what there is, a way out
//! is taken, and what there is then is judged.

use std::time::Duration;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::Child;
use vm_harness::{Container, ContainerOptions, EcrRuntime, Finished, Volume};

use super::{
    actor::{Actor, WayOut},
    scene::{PATH, Scene, State, claim_is_free, succeeded, told},
    step::{Step, Verb},
};

const MIB: u64 = 1 << 20;
/// Where the volume of a rival goes.
const OTHER_PATH: &str = "/dev/xvdb";
/// The whole time of a run whose QEMU is stopped, with KVM.
const SHORT: Duration = Duration::from_secs(1);

/// What happened.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// How the disturbed run ended.
    pub(super) run: String,
    /// What `list` said then.
    pub(super) listed: String,
    /// How the way out ended.
    pub(super) way_out: String,
    /// What there is at the end.
    pub(super) end: String,
}

/// One trial, on a scene that is clean.
pub(super) struct Trial<'a> {
    pub(super) scene: &'a Scene,
    pub(super) step: Step,
    pub(super) actor: Actor,
    pub(super) way_out: WayOut,
}

impl Trial<'_> {
    /// Runs it. What happened until then is in `told`, also where the judgement is an error.
    pub(super) async fn run(&self, told: &mut Told) -> Result<(), String> {
        let scene = self.scene;
        let container = match self.actor.takes_container() {
            true => scene.sandbox.try_start_container(&ContainerOptions::default()).await,
            false => Ok(scene.witness.clone()),
        };
        let container = container.map_err(|error| error.chain())?;
        let volume = Volume::loop_device(MIB);
        if self.step.verb == Verb::HotUnplug {
            let plug = scene.command(Verb::HotPlug, &container, &volume, PATH, "").run().await;
            succeeded("hot-plug", &plug)?;
        }
        match self.actor {
            Actor::QemuKilled | Actor::AgentKilled => self.vm_ends(&container, &volume, told).await,
            Actor::SameCommand
            | Actor::SameCommandAfterKill
            | Actor::OppositeCommand
            | Actor::SamePath
            | Actor::OtherVolume => self.rival(&container, &volume, told).await,
            _ => {
                self.disturb(&container, &volume, told).await?;
                self.leave(&container, &volume, told).await
            }
        }
    }

    fn command(&self, container: &Container, volume: &Volume, action: &str) -> EcrRuntime {
        let faults = format!("{}={action}", self.step.point);
        self.scene.command(self.step.verb, container, volume, PATH, &faults)
    }

    async fn disturb(
        &self,
        container: &Container,
        volume: &Volume,
        told: &mut Told,
    ) -> Result<(), String> {
        let scene = self.scene;
        let finished = match self.actor {
            Actor::RunKilled => {
                let killed = self.command(container, volume, "kill").run().await;
                if killed.status != 128 + 9 {
                    return Err(format!("the run was not killed at {}", self.step.point));
                }
                killed
            }
            Actor::PluginPanics => {
                scene.guest_faults(&format!("{}=panic\n", self.step.point)).await?;
                let failed = scene.command(self.step.verb, container, volume, PATH, "").run().await;
                scene.guest_faults("").await?;
                if failed.status == 0 {
                    return Err(format!("the run never came to {}", self.step.point));
                }
                failed
            }
            Actor::QemuStopped => {
                let limit = format!("{}s", scene.sandbox.guest().scaled(SHORT).as_secs());
                let command = self.command(container, volume, "stop").args(["--timeout", &limit]);
                let run = self.stopped(&command).await?;
                let qemu = self.qemu();
                signal(qemu, Signal::SIGSTOP)?;
                let finished = run.goes_on(scene).await;
                signal(qemu, Signal::SIGCONT)?;
                finished?
            }
            _ => {
                let run = self.stopped(&self.command(container, volume, "stop")).await?;
                container.kill().await.map_err(|error| error.chain())?;
                if self.actor == Actor::ContainerRemoved {
                    container.remove().await.map_err(|error| error.chain())?;
                    scene.sandbox.run_directory().remove_container(container.id());
                }
                run.goes_on(scene).await?
            }
        };
        told.run = super::scene::told(&finished);
        let state = scene.state().await?;
        told.listed = state.to_string();
        let as_it_must = match self.actor {
            Actor::RunKilled | Actor::PluginPanics => state == self.step.leaves,
            // What the guest did while nobody listened may be all or a part.
            Actor::QemuStopped => state != State::Stale,
            _ => matches!(state, State::Gone | State::Stale),
        };
        if as_it_must { Ok(()) } else { Err(format!("list must not say {state}")) }
    }

    /// Takes the way out and judges where it leads.
    async fn leave(
        &self,
        container: &Container,
        volume: &Volume,
        told: &mut Told,
    ) -> Result<(), String> {
        let (scene, nothing_left) = (self.scene, told.listed == State::Gone.to_string());
        let finished = match self.way_out {
            WayOut::Again => scene.command(self.step.verb, container, volume, PATH, "").run().await,
            WayOut::Unplug => {
                scene.command(Verb::HotUnplug, container, volume, PATH, "").run().await
            }
            WayOut::Repair => scene.of_sandbox("repair").run().await,
            WayOut::None => return Err("a disturbed run needs a way out".to_owned()),
        };
        told.way_out = super::scene::told(&finished);
        let is_unplug = self.way_out == WayOut::Unplug
            || (self.way_out == WayOut::Again && self.step.verb == Verb::HotUnplug);
        // To unplug what is not there is an error that says so.
        if finished.status != 0 && !(is_unplug && nothing_left && finished.status == 3) {
            return Err(finished.stdout);
        }
        let end = scene.state().await?;
        told.end = end.to_string();
        let wanted = match self.way_out {
            WayOut::Again => Some(self.step.verb.end()),
            WayOut::Unplug => Some(State::Gone),
            _ => None,
        };
        if wanted.is_some_and(|wanted| wanted != end) {
            return Err(format!("{end} is not where this way leads"));
        }
        match end {
            State::Attached => {
                scene.is_attached(container, volume, PATH).await?;
                scene.clean(container, volume, PATH).await?;
            }
            State::Gone => {}
            State::Incomplete | State::Stale => return Err("neither attached nor gone".to_owned()),
        }
        if self.actor == Actor::ContainerKilled {
            container.remove().await.map_err(|error| error.chain())?;
            scene.sandbox.run_directory().remove_container(container.id());
        }
        scene.is_gone(volume).await
    }

    /// With the VM all is gone, and the commands say that.
    async fn vm_ends(
        &self,
        container: &Container,
        volume: &Volume,
        told: &mut Told,
    ) -> Result<(), String> {
        let scene = self.scene;
        let run = self.stopped(&self.command(container, volume, "stop")).await?;
        if self.actor == Actor::QemuKilled {
            signal(self.qemu(), Signal::SIGKILL)?;
        } else {
            scene.sandbox.fault_is_meant();
            // The answer doesn't come: the kernel panics, as it does when PID 1 is killed.
            let _ = scene.sandbox.observer().write("/proc/sysrq-trigger", "c").await;
        }
        let limit = scene.sandbox.guest().scaled(Duration::from_secs(10));
        let ended = tokio::time::timeout(limit, scene.sandbox.guest().ended()).await;
        ended.map_err(|_| "QEMU goes on".to_owned())?;
        told.run = super::scene::told(&run.goes_on(scene).await?);
        let again = scene.command(self.step.verb, container, volume, PATH, "").run().await;
        let repair = scene.of_sandbox("repair").run().await;
        told.way_out =
            format!("{}; repair {}", super::scene::told(&again), super::scene::told(&repair));
        if again.status != 14 || repair.status != 14 {
            return Err("neither has anybody to talk to".to_owned());
        }
        told.end = "gone with the VM".to_owned();
        claim_is_free(volume)
    }

    /// Another run at the same time: both end well, or the one that must not is refused.
    async fn rival(
        &self,
        container: &Container,
        volume: &Volume,
        report: &mut Told,
    ) -> Result<(), String> {
        let (scene, verb) = (self.scene, self.step.verb);
        let other = Volume::loop_device(MIB);
        let opposite = match verb {
            Verb::HotPlug => Verb::HotUnplug,
            Verb::HotUnplug => Verb::HotPlug,
        };
        let (done, again) = match verb {
            Verb::HotPlug => ("attached", "unchanged"),
            Verb::HotUnplug => ("detached", "exit 3 (volume_not_found)"),
        };
        // The rival's command, how it ends, what there is of the volume and of the other one then.
        let (rival, rival_ends, end, other_at) = match self.actor {
            Actor::SameCommand => ((verb, volume, PATH), vec![again], verb.end(), None),
            // All was done, or nothing was begun, or the rest is the rival's work.
            Actor::SameCommandAfterKill => {
                ((verb, volume, PATH), vec![done, again], verb.end(), None)
            }
            Actor::OppositeCommand => {
                ((opposite, volume, PATH), vec!["attached", "detached"], verb.start(), None)
            }
            Actor::SamePath => (
                (verb, &other, PATH),
                vec!["exit 4 (path_taken)", "exit 4 (path_holds_volume)"],
                verb.end(),
                None,
            ),
            _ => (
                (Verb::HotPlug, &other, OTHER_PATH),
                vec!["attached"],
                verb.end(),
                Some(OTHER_PATH),
            ),
        };
        let run = self.stopped(&self.command(container, volume, "stop")).await?;
        let rival = scene.command(rival.0, container, rival.1, rival.2, "").start();
        let rival = Run::new(rival)?;
        // It has nothing to do but to wait for the lock.
        scene.until(rival.process.as_raw(), 'S').await?;
        if self.actor == Actor::SameCommandAfterKill {
            signal(run.process, Signal::SIGKILL)?;
        }
        let (run, rival) = tokio::try_join!(run.goes_on(scene), rival.ends(scene))?;
        report.run = told(&run);
        report.way_out = format!("meanwhile: {}", told(&rival));
        if self.actor != Actor::SameCommandAfterKill && report.run != done {
            return Err(run.stdout);
        }
        if !rival_ends.contains(&told(&rival).as_str()) {
            return Err(rival.stdout);
        }
        report.end = end.to_string();
        if let Some(path) = other_at {
            scene.is_attached(container, &other, path).await?;
        }
        if end == State::Attached {
            scene.is_attached(container, volume, PATH).await?;
            scene.clean(container, volume, PATH).await?;
        }
        if let Some(path) = other_at {
            scene.clean(container, &other, path).await?;
        }
        claim_is_free(&other)?;
        scene.is_gone(volume).await
    }

    fn qemu(&self) -> Pid {
        Pid::from_raw(self.scene.sandbox.guest().qemu_id().cast_signed())
    }

    /// Starts a command that stops itself at the step.
    async fn stopped(&self, command: &EcrRuntime) -> Result<Run, String> {
        let run = Run::new(command.start())?;
        self.scene.until(run.process.as_raw(), 'T').await?;
        Ok(run)
    }
}

/// A run under way.
struct Run {
    child: Child,
    process: Pid,
}

impl Run {
    fn new(child: Child) -> Result<Self, String> {
        let process = child.id().ok_or("the run has ended already")?;
        Ok(Self { child, process: Pid::from_raw(process.cast_signed()) })
    }

    async fn goes_on(self, scene: &Scene) -> Result<Finished, String> {
        signal(self.process, Signal::SIGCONT)?;
        self.ends(scene).await
    }

    async fn ends(self, scene: &Scene) -> Result<Finished, String> {
        let limit = scene.sandbox.guest().scaled(Duration::from_secs(30));
        let output = tokio::time::timeout(limit, self.child.wait_with_output()).await;
        let output = output.map_err(|_| format!("the run did not end within {limit:?}"))?;
        Ok(Finished::new(&output.map_err(|error| error.to_string())?, Duration::ZERO))
    }
}

fn signal(process: Pid, signal: Signal) -> Result<(), String> {
    kill(process, signal).map_err(|errno| format!("{signal} to {process}: {errno}"))
}
