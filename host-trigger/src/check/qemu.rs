//! The sandbox's QEMU: its socket, its version and the bugs that are known of it, its state, the
//! controller, what is free, what is left.

use std::fs;

use serde_json::{Value, json};

use crate::{
    Deadline, Error, checked::Finding, controller::Controller, disk, qemu_bug::bugs_of,
    registry::Registry, sandbox::Place,
};
use block_volume_qmp::{Qmp, QmpError};

use super::kata;

/// Descriptors that QEMU keeps for a volume: the one that it is handed, its block node's, the one
/// that carries the outcome, and one more for a second use.
const FOR_A_VOLUME: u64 = 4;
/// Fewer than this are told: as many take one call.
const FEW: u64 = 256;

/// The oldest version that this program was tested with.
const OLDEST: [u32; 2] = [7, 2];

/// Looks at all of it.
pub(super) async fn look(place: &Place, deadline: Deadline, checks: &mut Vec<Finding>) {
    let mut qmp = match place.connect_qmp(deadline).await {
        Ok(qmp) => qmp,
        Err(e) => {
            let mut finding = Finding::problem("qmp", &e);
            if matches!(e, Error::Qmp(QmpError::Held { .. }) | Error::NoQmpSocket { .. }) {
                finding = finding.with_way_out(&kata::LINES);
            }
            return checks.push(finding);
        }
    };
    checks.push(Finding::ok("qmp", "a QMP socket is free"));
    checks.push(version(qmp.version()));
    let mut asked = Vec::new();
    if let Err(e) = ask(place, &mut qmp, &mut asked).await {
        asked.push(Finding::problem("qemu", &e));
    }
    checks.append(&mut asked);
}

async fn ask(place: &Place, qmp: &mut Qmp, checks: &mut Vec<Finding>) -> Result<(), Error> {
    let status: Value = qmp.query("query-status", json!({})).await?;
    checks.push(match status["status"].as_str().unwrap_or_default() {
        "running" => Finding::ok("vm", "running"),
        other => {
            let error = Error::TimedOut { what: format!("the guest, whose VM is {other:?}") };
            Finding::problem("vm", &error)
        }
    });
    let mut registry = Registry::read(qmp).await?;
    registry.read_nodes(qmp).await?;
    match registry.controller(None) {
        Ok(controller) => controller_of(qmp, &registry, &controller, checks).await?,
        Err(e) => checks.push(Finding::problem("controller", &e)),
    }
    checks.extend(descriptors(place, qmp));
    checks.push(volumes(&registry));
    Ok(())
}

async fn controller_of(
    qmp: &mut Qmp,
    registry: &Registry,
    controller: &Controller,
    checks: &mut Vec<Finding>,
) -> Result<(), Error> {
    let Controller { id, pci_address } = controller;
    let at = pci_address.as_ref().map(|address| format!(" at {address}")).unwrap_or_default();
    checks.push(Finding::ok("controller", format!("{id}{at}")));
    let path = format!("/machine/peripheral/{id}");
    let told: bool = qmp.query("qom-get", json!({"path": path, "property": "hotplug"})).await?;
    checks.push(match told {
        true => {
            Finding::ok("hotplug-events", "the guest's kernel is told of disks that come and go")
        }
        // The plugin scans, so that a plug does not need them.
        false => Finding::ok("hotplug-events", "off: the plugin finds disks by its own scan"),
    });
    let mut taken = 0;
    for device in registry.disks() {
        let of = format!("/machine/peripheral/{device}");
        let bus: String =
            qmp.query("qom-get", json!({"path": of, "property": "parent_bus"})).await?;
        let target: u32 = qmp.query("qom-get", json!({"path": of, "property": "scsi-id"})).await?;
        if bus.starts_with(&format!("{path}/")) && disk::TARGETS.contains(&target) {
            taken += 1;
        }
    }
    let free = disk::ADDRESSES - taken;
    checks.push(match free {
        0 => Finding::problem("addresses", &Error::NoAddress),
        _ => Finding::ok(
            "addresses",
            format!("{free} of {} SCSI addresses are free", disk::ADDRESSES),
        ),
    });
    Ok(())
}

/// Known bugs of QEMU that a user of this program meets.
fn version(version: &str) -> Finding {
    const CHECK: &str = "qemu-version";
    let numbers: Vec<u32> = version.split('.').map_while(|part| part.parse().ok()).collect();
    if numbers.as_slice() < OLDEST.as_slice() {
        let found =
            format!("{version}: older than 7.2, the oldest that this program was tested with");
        return Finding::warning(CHECK, found, &["use QEMU 8.1 or later"]);
    }
    match bugs_of(version).next() {
        Some(bug) => {
            let found = format!("{version} may have the bug {}: {}", bug.name, bug.effect);
            Finding::warning(CHECK, found, &[bug.remedy])
        }
        None => Finding::ok(CHECK, format!("{version}, no bug is known that matters here")),
    }
}

/// How many volumes QEMU could open.
fn descriptors(place: &Place, qmp: &Qmp) -> Option<Finding> {
    let pid = place.qemu_pid().or(qmp.server())?;
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let limit = soft_limit(&limits)?;
    let open = u64::try_from(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count()).ok()?;
    let room = limit.saturating_sub(open) / FOR_A_VOLUME;
    let found = format!(
        "process {pid} has {open} of {limit} descriptors open: there is room for {room} more volumes"
    );
    Some(match room {
        FEW.. => Finding::ok("descriptors", found),
        _ => Finding::warning(
            "descriptors",
            found,
            &[
                "raise the limit of new sandboxes: LimitNOFILE= of containerd's unit; of this one: prlimit --nofile=MORE --pid PID",
            ],
        ),
    })
}

fn soft_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_ascii_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

fn volumes(registry: &Registry) -> Finding {
    let uses = registry.uses();
    let whole = uses.iter().filter(|known| known.is_plugged()).count();
    let half = uses.len() - whole;
    let unused = registry.unused().len();
    match (half, unused) {
        (0, 0) => Finding::ok("volumes", format!("{whole} plugged")),
        _ => Finding::warning(
            "volumes",
            format!(
                "{whole} plugged, {half} half plugged or half unplugged, {unused} descriptors that nothing uses"
            ),
            &["ecr-runtime block-volume repair"],
        ),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::checked::Status;

    #[rstest]
    #[case("6.2.0", Status::Warning)]
    #[case("7.1.0", Status::Warning)]
    #[case("7.2.0", Status::Warning)]
    #[case("7.2.22", Status::Ok)]
    #[case("8.0.5", Status::Warning)]
    #[case("8.1.0", Status::Ok)]
    #[case("10.0.2", Status::Ok)]
    #[case("11.1.3", Status::Ok)]
    fn known_bugs_are_told(#[case] text: &str, #[case] status: Status) {
        let finding = version(text);
        assert_eq!((finding.status, finding.way_out.is_empty()), (status, status == Status::Ok));
    }

    #[test]
    fn the_soft_limit_is_read() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            1024                 524288               files     \n";
        assert_eq!(soft_limit(limits), Some(1024));
        assert_eq!(soft_limit(&limits.replace("1024 ", "unlimited ")), Some(u64::MAX));
        assert_eq!(soft_limit(""), None);
    }
}
