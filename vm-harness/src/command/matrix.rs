//! `vm-harness matrix`: the conformance suite for each pair of a kernel and a QEMU, as a table.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use clap::Args;
use vm_harness::{
    Environment, Error,
    conformance::{Conformance, Event, Mode, Report, Verdict},
};

/// The pairs to run, and the checks.
#[derive(Debug, Args)]
#[command(before_help = "Example: vm-harness matrix --kernel target/cache/kernels/generic \
                   --qemu qemu-system-x86_64")]
pub(crate) struct Matrix {
    /// Directory of an unpacked kernel package; may be repeated
    #[arg(long, value_name = "DIR", required = true)]
    kernel: Vec<PathBuf>,
    /// QEMU's binary; may be repeated
    #[arg(long, value_name = "PATH", required = true)]
    qemu: Vec<PathBuf>,
    /// QEMU's machine type: q35 or pc
    #[arg(long, value_name = "TYPE", env = "VM_HARNESS_MACHINE")]
    machine: Option<String>,
    /// The number of CPUs of the guest
    #[arg(long, value_name = "N", env = "VM_HARNESS_CPUS")]
    cpus: Option<String>,
    /// Only this kind of guest; may be repeated
    #[arg(long, value_enum, value_name = "MODE")]
    mode: Vec<Mode>,
    /// Only checks with this text in their name; may be repeated
    #[arg(long, value_name = "TEXT")]
    check: Vec<String>,
    /// Write each pair's report to this directory, as KERNEL-QEMU.json and .xml (JUnit)
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

/// One cell of the table.
struct Pair {
    kernel: String,
    qemu: String,
    text: String,
    good: bool,
}

impl Matrix {
    pub(crate) async fn run(self) -> Result<ExitCode, Error> {
        if let Some(directory) = &self.report {
            fs::create_dir_all(directory).map_err(|source| file("make", directory, source))?;
        }
        let mut pairs = Vec::new();
        for kernel in &self.kernel {
            for qemu in &self.qemu {
                pairs.push(self.pair(kernel, qemu).await?);
            }
        }
        println!("\n{}", table(&pairs));
        let good = pairs.iter().all(|pair| pair.good);
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    async fn pair(&self, kernel: &Path, qemu: &Path) -> Result<Pair, Error> {
        let mut environment = Environment::from_variables();
        environment.overrides.kernel = Some(kernel.to_owned());
        environment.qemu = qemu.to_owned();
        // The boot is a part of the test.
        environment.restore = false;
        environment.machine_type.clone_from(&self.machine);
        environment.cpus.clone_from(&self.cpus);
        let all = Conformance::new(environment);
        let modes = if self.mode.is_empty() { all.modes.clone() } else { self.mode.clone() };
        let suite = Conformance { modes, only: self.check.clone(), ..all };
        if suite.checks().next().is_none() {
            return Err(Error::NoCheck { wanted: self.check.join(", ") });
        }
        let start = Instant::now();
        eprintln!("{} with {}", kernel.display(), qemu.display());
        let report = suite.run(&mut |event| print(&event)).await;
        let (counts, broken) = (report.counts(), report.broken());
        let text = match broken {
            Some(_) => format!("broken, {} failed of {}", counts.failed, counts.run),
            None => {
                format!(
                    "{} failed of {}, {:.0} s",
                    counts.failed,
                    counts.run,
                    start.elapsed().as_secs_f64()
                )
            }
        };
        let names =
            report.subject.as_ref().map(|subject| (subject.kernel.clone(), subject.qemu.clone()));
        let (kernel, qemu) = names.unwrap_or_else(|| (name(kernel), qemu.display().to_string()));
        let kernel = self.row(kernel);
        if let Some(directory) = &self.report {
            write(&report, directory, &format!("{kernel}-{qemu}").replace(' ', "-"))?;
        }
        let good = broken.is_none() && counts.failed == 0 && counts.run > 0;
        Ok(Pair { kernel, qemu, text, good })
    }

    /// Names a row: the kernel, and the machine where it is not the usual one.
    fn row(&self, kernel: String) -> String {
        let machine = self.machine.as_ref().map(|machine| format!(" on {machine}"));
        let cpus = self.cpus.as_ref().map(|cpus| format!(" with {cpus} CPUs"));
        [Some(kernel), machine, cpus].into_iter().flatten().collect()
    }
}

/// Prints what is tested, failures, and what is broken.
fn print(event: &Event<'_>) {
    match event {
        Event::Subject(subject) => eprintln!("  {subject}"),
        Event::Outcome(mode, outcome) if matches!(outcome.verdict, Verdict::Failed { .. }) => {
            eprintln!("  {}: {outcome}", mode.name());
        }
        Event::ModeEnds(mode) => {
            if let Some(broken) = &mode.broken {
                eprintln!("  {}: {broken}", mode.mode.name());
            }
        }
        Event::Booted(..) | Event::Outcome(..) => {}
    }
}

fn write(report: &Report, directory: &Path, name: &str) -> Result<(), Error> {
    let json = serde_json::to_string_pretty(report).unwrap_or_default();
    for (suffix, text) in [("json", json), ("xml", report.junit())] {
        let path = directory.join(format!("{}.{suffix}", name.replace('/', "_")));
        fs::write(&path, text).map_err(|source| file("write", &path, source))?;
    }
    Ok(())
}

/// Returns a table with a row for each kernel and a column for each QEMU, both in the order in
/// which they ran.
fn table(pairs: &[Pair]) -> String {
    let (mut kernels, mut qemus): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for pair in pairs {
        if !kernels.contains(&pair.kernel.as_str()) {
            kernels.push(&pair.kernel);
        }
        if !qemus.contains(&pair.qemu.as_str()) {
            qemus.push(&pair.qemu);
        }
    }
    let mut rows = vec![
        ["kernel"].into_iter().chain(qemus.iter().copied()).map(str::to_owned).collect::<Vec<_>>(),
    ];
    for kernel in kernels {
        let cell = |qemu: &&str| {
            let pair = pairs.iter().find(|pair| pair.kernel == kernel && pair.qemu == *qemu);
            pair.map_or_else(String::new, |pair| pair.text.clone())
        };
        rows.push([kernel.to_owned()].into_iter().chain(qemus.iter().map(cell)).collect());
    }
    rows[0].iter_mut().skip(1).for_each(|version| version.insert_str(0, "QEMU "));
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default())
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn name(kernel: &Path) -> String {
    kernel.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn file(action: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::File { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_a_row_for_each_kernel_and_a_column_for_each_qemu() {
        let pair = |kernel: &str, qemu: &str, text: &str| Pair {
            kernel: kernel.into(),
            qemu: qemu.into(),
            text: text.into(),
            good: true,
        };
        let pairs = [
            pair("5.10", "7.2.22", "0 failed of 40, 50 s"),
            pair("5.10", "10.0.2", "1 failed of 40, 51 s"),
            pair("6.12", "7.2.22", "broken, 0 failed of 0"),
        ];
        assert_eq!(
            table(&pairs),
            "kernel  QEMU 7.2.22            QEMU 10.0.2\n\
             5.10    0 failed of 40, 50 s   1 failed of 40, 51 s\n\
             6.12    broken, 0 failed of 0"
        );
    }
}
