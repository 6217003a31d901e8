//! `vm-harness crash`: every step of a plug and an unplug × what can come in the way × the ways
//! out, as a table. No volume is ever between attached and gone after a way out was taken.

mod actor;
mod scene;
mod step;
mod trial;

use std::process::ExitCode;

use clap::Args;
use vm_harness::Error;

use actor::Actor;
use scene::Scene;
use trial::{Told, Trial};

/// Which rows; all without an option.
#[derive(Debug, Args)]
pub(crate) struct Crash {
    /// Only what happens with this in its name: "killed", "QEMU"
    #[arg(long, value_name = "TEXT")]
    actor: Option<String>,
    /// Only steps with this in their name
    #[arg(long, value_name = "TEXT")]
    step: Option<String>,
    /// Only the way out of this name: hot-plug, hot-unplug, repair
    #[arg(long, value_name = "NAME")]
    way_out: Option<String>,
}

impl Crash {
    pub(crate) async fn run(self) -> Result<ExitCode, Error> {
        println!(
            "| command | right after | what happens | it ends | `list` says | way out | it ends | at the end |"
        );
        println!("|---|---|---|---|---|---|---|---|");
        let mut scene = None;
        let (mut rows, mut bad) = (0, 0);
        for actor in Actor::ALL.into_iter().filter(|actor| wanted(&self.actor, actor.name())) {
            for step in actor.steps().filter(|step| wanted(&self.step, step.point)) {
                for &way_out in actor.ways_out(step.verb) {
                    let way = way_out.name(step.verb);
                    if self.way_out.as_ref().is_some_and(|wanted| wanted != way) {
                        continue;
                    }
                    let stage = match scene.take() {
                        Some(stage) => stage,
                        None => Scene::boot().await?,
                    };
                    let mut told = Told::default();
                    let result = Trial { scene: &stage, step, actor, way_out }.run(&mut told).await;
                    let Told { run, listed, way_out, end } = told;
                    let end = match &result {
                        Ok(()) => end,
                        Err(_) => format!("{end} **WRONG**"),
                    };
                    let (verb, point, actor_name) = (step.verb.name(), step.point, actor.name());
                    println!(
                        "| {verb} | {point} | {actor_name} | {run} | {listed} | {way} | {way_out} | {end} |"
                    );
                    rows += 1;
                    if let Err(why) = result {
                        bad += 1;
                        eprintln!(
                            "{verb}, {point}, {actor_name}, {way}: {why}\n{}",
                            stage.sandbox.guest().report()
                        );
                        // The next trial wants a clean one.
                        stage.sandbox.fault_is_meant();
                    } else if !actor.ends_vm() {
                        scene = Some(stage);
                    }
                }
            }
        }
        println!("\n{rows} rows, {bad} wrong");
        Ok(if bad == 0 && rows > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn wanted(filter: &Option<String>, name: &str) -> bool {
    filter.as_ref().is_none_or(|part| name.contains(part.as_str()))
}
