//! `vm-harness bench --boot`: the time until the agent answers, of guests that are booted and of
//! guests that are restored.

use std::time::Duration;

use vm_harness::{Environment, Error, Machine, Origin, Sandbox};

use super::{markdown::table, row::Row, samples::Samples};
use crate::command::progress::step;

/// Wall time and QEMU's processor time until the agent answers.
#[derive(Default)]
struct Times {
    wall: Samples,
    processor: Samples,
}

impl Times {
    async fn add(&mut self, environment: &Environment) -> Result<Origin, Error> {
        let sandbox = Sandbox::boot_in(environment, "default", &Machine::default()).await?;
        self.wall.add(sandbox.boot_time());
        self.processor.add(sandbox.guest().qemu_time().unwrap_or(Duration::ZERO));
        Ok(sandbox.guest().origin().clone())
    }

    fn rows(self, name: &str) -> [Row; 2] {
        [
            Row::times(format!("{name}, until the agent answers"), self.wall),
            Row::times(format!("{name}, QEMU's processor time until then"), self.processor),
        ]
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
    println!("Median / 90th percentile of {rounds} rounds, milliseconds\n");
    let rows = [booted.rows("booted"), restored.rows("restored")].concat();
    print!("{}", table(&rows));
    Ok(())
}
