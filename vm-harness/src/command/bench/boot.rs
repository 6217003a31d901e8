//! `vm-harness bench --boot`: the time until the agent answers, of guests that are booted and of
//! guests that are restored.

use std::time::Duration;

use vm_harness::{Environment, Error, Machine, Origin, Sandbox};

use super::times::{micros, row};
use crate::command::progress::step;

/// Wall time and QEMU's processor time until the agent answers.
#[derive(Default)]
struct Times {
    wall: Vec<u64>,
    processor: Vec<u64>,
}

impl Times {
    async fn add(&mut self, environment: &Environment) -> Result<Origin, Error> {
        let sandbox = Sandbox::boot_in(environment, "default", &Machine::default()).await?;
        self.wall.push(micros(sandbox.boot_time()));
        self.processor.push(micros(sandbox.guest().qemu_time().unwrap_or(Duration::ZERO)));
        Ok(sandbox.guest().origin().clone())
    }

    fn print(&self, name: &str) {
        row(&format!("{name}, until the agent answers"), &self.wall);
        row("  QEMU's processor time until then", &self.processor);
    }
}

/// Boots and restores alternately, and prints the times.
pub(super) async fn run(rounds: usize) -> Result<(), Error> {
    let (mut restoring, mut booting) =
        (Environment::from_variables(), Environment::from_variables());
    (restoring.restore, booting.restore) = (true, false);
    let (mut booted, mut restored) = (Times::default(), Times::default());
    // The first boot makes the file.
    let origin = step("save a guest", Times::default().add(&restoring)).await?;
    if let Origin::Booted(reason) = origin {
        println!("no guest can be restored: {reason}");
    }
    for _ in 0..rounds {
        booted.add(&booting).await?;
        match restored.add(&restoring).await? {
            Origin::Restored => {}
            Origin::Booted(reason) => println!("not restored: {reason}"),
        }
    }
    println!("{rounds} rounds, milliseconds (minimum / median / 90 %)");
    booted.print("booted");
    restored.print("restored");
    Ok(())
}
