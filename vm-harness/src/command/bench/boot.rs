//! `vm-harness bench --boot`: how long until the agent answers, with a guest that is booted and one
//! that is restored.

use std::time::Duration;

use vm_harness::{Environment, Error, Machine, Origin, Sandbox};

use super::{micros, row};
use crate::command::step::step;

/// Wall time until the agent answers and QEMU's processor time until then, of one kind.
#[derive(Default)]
struct Times {
    wall: Vec<u64>,
    processor: Vec<u64>,
}

impl Times {
    async fn add(&mut self, environment: &Environment) -> Result<Origin, Error> {
        let sandbox = Sandbox::boot_in(environment, "default", &Machine::default()).await?;
        self.wall.push(micros(sandbox.booted_in()));
        self.processor.push(micros(sandbox.guest().qemu_time().unwrap_or(Duration::ZERO)));
        Ok(sandbox.guest().origin().clone())
    }

    fn print(&self, name: &str) {
        row(&format!("{name}, until the agent answers"), &self.wall);
        row("  QEMU's processor time until then", &self.processor);
    }
}

/// Boots and restores in turns.
pub(super) async fn run(rounds: usize) -> Result<(), Error> {
    let (mut restoring, mut booting) =
        (Environment::from_variables(), Environment::from_variables());
    (restoring.restore, booting.restore) = (true, false);
    let (mut booted, mut restored) = (Times::default(), Times::default());
    // The first one makes the file.
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
