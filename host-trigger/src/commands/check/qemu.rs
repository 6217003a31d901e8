//! The sandbox's QEMU: its socket, its version and known bugs, the VM's state, the controller, free
//! addresses and descriptors, leftovers.

use std::fs;

use block_volume_qmp::{Qmp, QmpError};
use serde_json::{Value, json};

use super::kata::Proved;
use crate::{
    Deadline, Error,
    host::process,
    kata::sandbox::Sandbox,
    output::findings::Finding,
    qemu::{controller::Controller, disk, inventory::Inventory, known_bugs::bugs_of},
};

/// Descriptors that QEMU keeps for a volume: the one that is passed to it, its block node's, the
/// one that carries the commit record, and one more for a further attachment.
const PER_VOLUME: u64 = 4;
/// Room for fewer volumes than this is a warning: one call takes as many.
const ENOUGH: u64 = 256;

/// The oldest version that this program was tested with.
const OLDEST: [u32; 2] = [7, 2];

/// Checks the sandbox's QEMU. Returns what it proves about the configuration that it was started
/// with.
pub(super) async fn check(
    sandbox: &Sandbox,
    deadline: Deadline,
    checks: &mut Vec<Finding>,
) -> Proved {
    let mut proved = Proved { monitor: true, controller: true };
    let mut qmp = match sandbox.connect_qmp(deadline).await {
        Ok(qmp) => qmp,
        Err(e) => {
            proved.monitor = !matches!(
                e,
                Error::Qmp(QmpError::Held { .. } | QmpError::Connect { .. })
                    | Error::NoQmpSocket { .. }
            );
            checks.push(Finding::problem("qmp", &e));
            return proved;
        }
    };
    checks.push(Finding::ok("qmp", "a QMP socket is free"));
    checks.push(version(qmp.version()));
    match query(sandbox, &mut qmp, checks).await {
        Ok(has_controller) => proved.controller = has_controller,
        Err(e) => checks.push(Finding::problem("qemu", &e)),
    }
    proved
}

/// Returns whether the VM has a controller.
async fn query(sandbox: &Sandbox, qmp: &mut Qmp, checks: &mut Vec<Finding>) -> Result<bool, Error> {
    let status: Value = qmp.query("query-status", json!({})).await?;
    checks.push(match status["status"].as_str().unwrap_or_default() {
        "running" => Finding::ok("vm", "running"),
        other => {
            let error = Error::TimedOut { what: format!("the guest; the VM is {other:?}") };
            Finding::problem("vm", &error)
        }
    });
    let mut inventory = Inventory::read(qmp).await?;
    inventory.read_nodes(qmp).await?;
    let controller = inventory.controller(None);
    let has_controller = !matches!(controller, Err(Error::NoController));
    match controller {
        Ok(controller) => controller_of(qmp, &inventory, &controller, checks).await?,
        Err(e) => checks.push(Finding::problem("controller", &e)),
    }
    checks.extend(descriptors(sandbox, qmp));
    checks.push(volumes(&inventory));
    Ok(has_controller)
}

async fn controller_of(
    qmp: &mut Qmp,
    inventory: &Inventory,
    controller: &Controller,
    checks: &mut Vec<Finding>,
) -> Result<(), Error> {
    let Controller { id, pci_address } = controller;
    let at = pci_address.as_ref().map(|address| format!(" at {address}")).unwrap_or_default();
    checks.push(Finding::ok("controller", format!("{id}{at}")));
    let path = format!("/machine/peripheral/{id}");
    let sends_events: bool =
        qmp.query("qom-get", json!({"path": path, "property": "hotplug"})).await?;
    checks.push(match sends_events {
        true => Finding::ok(
            "hotplug_events",
            "on: QEMU notifies the guest's kernel of disks that are added and removed",
        ),
        // The plugin scans, so a hot-plug does not need the events.
        false => Finding::ok("hotplug_events", "off: the plugin finds disks by its own scan"),
    });
    let mut taken = 0;
    for device in inventory.disks() {
        let device = format!("/machine/peripheral/{device}");
        let bus: String =
            qmp.query("qom-get", json!({"path": device, "property": "parent_bus"})).await?;
        let target: u32 =
            qmp.query("qom-get", json!({"path": device, "property": "scsi-id"})).await?;
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

/// Checks QEMU's version for known bugs that affect users of this program.
fn version(version: &str) -> Finding {
    const NAME: &str = "qemu_version";
    let numbers: Vec<u32> = version.split('.').map_while(|part| part.parse().ok()).collect();
    if numbers.as_slice() < OLDEST.as_slice() {
        let message =
            format!("{version}: older than 7.2, the oldest that this program was tested with");
        return Finding::warning(NAME, message, &["use QEMU 8.1 or later"]);
    }
    match bugs_of(version).next() {
        Some(bug) => {
            let message = format!("{version} may have the bug {}: {}", bug.name, bug.effect);
            Finding::warning(NAME, message, &[bug.remedy])
        }
        None => Finding::ok(NAME, format!("{version}, no known bug affects this program")),
    }
}

/// Checks how many more volumes QEMU could open.
fn descriptors(sandbox: &Sandbox, qmp: &Qmp) -> Option<Finding> {
    // The recorded process ID may belong to another process by now.
    let recorded = sandbox.qemu_pid().ok()?.filter(|&pid| process::is_qemu(pid));
    let pid = recorded.or(qmp.server())?;
    let limits = fs::read(format!("/proc/{pid}/limits")).ok()?;
    let limit = soft_limit(&String::from_utf8_lossy(&limits))?;
    let open = u64::try_from(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count()).ok()?;
    let room = limit.saturating_sub(open) / PER_VOLUME;
    let message = format!(
        "process {pid} has {open} of {limit} descriptors open: there is room for {room} more volumes"
    );
    Some(match room {
        ENOUGH.. => Finding::ok("descriptors", message),
        _ => Finding::warning(
            "descriptors",
            message,
            &[
                "raise the limit: for new sandboxes LimitNOFILE= in containerd's unit; for this one prlimit --nofile=MORE --pid PID",
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

fn volumes(inventory: &Inventory) -> Finding {
    let attachments = inventory.attachments();
    let attached = attachments.iter().filter(|known| known.is_attached()).count();
    let abandoned = attachments.iter().filter(|known| known.state.is_abandoned).count();
    let incomplete = attachments.len() - attached - abandoned;
    let unused = inventory.unused().len();
    if let Some(known) = attachments.iter().find(|known| known.state.is_abandoned) {
        return Finding::problem("volumes", &known.abandoned_error());
    }
    match (incomplete, unused) {
        (0, 0) => Finding::ok("volumes", format!("{attached} attached")),
        _ => Finding::warning(
            "volumes",
            format!(
                "{attached} attached, {incomplete} incomplete, {unused} descriptors that nothing uses"
            ),
            &["run ecr-runtime block-volume repair"],
        ),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::output::findings::Status;

    #[rstest]
    #[case("6.2.0", Status::Warning)]
    #[case("7.1.0", Status::Warning)]
    #[case("7.2.0", Status::Warning)]
    #[case("7.2.22", Status::Ok)]
    #[case("8.0.5", Status::Warning)]
    #[case("8.1.0", Status::Ok)]
    #[case("10.0.2", Status::Ok)]
    #[case("11.1.3", Status::Ok)]
    fn known_bugs_are_reported(#[case] text: &str, #[case] status: Status) {
        let finding = version(text);
        assert_eq!((finding.status, finding.remedy.is_none()), (status, status == Status::Ok));
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
