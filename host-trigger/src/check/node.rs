//! This node, before any sandbox: who calls, where sandboxes would be, Kata's configuration, the
//! kernel, LVM.

use std::{fs, path::Path};

use nix::unistd::geteuid;

use super::{kata, lvm};
use crate::{
    Error,
    block_sysfs::names,
    checked::Finding,
    sandbox::{self, RUN_DIRS},
};

/// Looks at all of it.
pub(super) fn look(run_dir: Option<&Path>) -> Vec<Finding> {
    let root = Path::new("/");
    let mut checks = vec![rights()];
    checks.push(sandboxes(run_dir));
    checks.push(kata::look(root));
    checks.push(kernel());
    checks.push(vsock());
    checks.push(lvm::look(root));
    checks.extend(security_module());
    checks
}

/// It opens block devices, the sandboxes' sockets, and other processes' descriptors.
fn rights() -> Finding {
    if geteuid().is_root() {
        return Finding::ok("rights", "this is root");
    }
    let source = std::io::ErrorKind::PermissionDenied.into();
    let error = Error::Denied {
        call: "what this program does as user",
        path: geteuid().to_string().into(),
        source,
    };
    Finding::problem("rights", &error)
}

fn sandboxes(run_dir: Option<&Path>) -> Finding {
    let roots: Vec<_> = match run_dir {
        Some(directory) => vec![directory.to_owned()],
        None => RUN_DIRS.map(Into::into).to_vec(),
    };
    let places =
        roots.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(" and ");
    match sandbox::all(&roots) {
        Ok(found) if found.is_empty() => {
            let way_out =
                ["start a pod with Kata's runtime, or name another directory with --run-dir"];
            Finding::warning("sandboxes", format!("none in {places}"), &way_out)
        }
        Ok(found) => Finding::ok("sandboxes", format!("{} in {places}", found.len())),
        Err(e) => Finding::problem("sandboxes", &e),
    }
}

/// Disk sequence numbers tell a disk from a later one with its number.
fn kernel() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim_end().to_owned();
    let disks: Vec<_> = names(Path::new("/sys/block")).collect();
    let numbered =
        disks.iter().any(|name| Path::new("/sys/block").join(name).join("diskseq").exists());
    if numbered || disks.is_empty() {
        return Finding::ok("kernel", release);
    }
    let found = format!(
        "{release}: it has no disk sequence numbers, so that a disk is not told from one that replaces it"
    );
    Finding::warning("kernel", found, &["Linux 5.15 and later have them"])
}

/// Agents are reached over it, unless the hypervisor offers a Unix socket in its place.
fn vsock() -> Finding {
    match Path::new("/dev/vsock").exists() {
        true => Finding::ok("vsock", "there"),
        false => Finding::warning(
            "vsock",
            "the kernel has no vsock, by which agents are reached (vsock://CID:PORT)",
            &["modprobe vhost_vsock"],
        ),
    }
}

/// It asks again when a descriptor is passed on.
fn security_module() -> Option<Finding> {
    let enforces =
        fs::read_to_string("/sys/fs/selinux/enforce").is_ok_and(|text| text.trim_end() == "1");
    enforces.then(|| {
        Finding::warning(
            "selinux",
            "SELinux enforces: whether QEMU may use a block device that it is handed is for its policy to say",
            &["allow QEMU's type blk_file { read write getattr ioctl lock } on the volumes' type"],
        )
    })
}
