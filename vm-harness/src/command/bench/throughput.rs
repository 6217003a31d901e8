//! Reads and writes in the container through the volume, beside the same on the guest's disk
//! outside of all containers, alternating. A proxy changes the way in which QEMU accesses the
//! source (`aio`) in the commands of `ecr-runtime`; an I/O thread is a property of the controller,
//! and so of the VM.

use std::{ffi::OsStr, path::Path};

use vm_harness::{Accelerator, Error, Fault, Plugged, QmpProxy, Rule, command};

use super::{
    row::{Goal, Row, Series},
    samples::Samples,
    subject::{OBSERVER, PATH, Subject},
};

const GOAL: Goal = Goal::AtLeast(0.98);
const AIO: [&str; 3] = ["io_uring", "threads", "native"];

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort {
    /// How often each side is measured.
    pub(super) rounds: usize,
    /// For how long, each time.
    pub(super) milliseconds: u32,
    /// Only one way to access the source, and only blocks of 4 KiB.
    pub(super) one_way: bool,
}

/// One kind of access.
#[derive(Debug, Clone, Copy)]
struct Access {
    verb: &'static str,
    block: u32,
    depth: u32,
}

/// Measures in one VM. `controller` says in the rows what it has.
pub(super) async fn rows(
    subject: &Subject,
    controller: &str,
    effort: Effort,
) -> Result<Vec<Row>, Error> {
    let judged = subject.sandbox.guest().accelerator() == Accelerator::Kvm;
    let mut rows = Vec::new();
    for aio in AIO.into_iter().take(if effort.one_way { 1 } else { AIO.len() }) {
        let plugged = plug(subject, aio).await?;
        for access in accesses(effort) {
            let (mut ours, mut raw) = (Samples::default(), Samples::default());
            for _ in 0..effort.rounds {
                ours.push(in_container(subject, access, effort).await?);
                raw.push(in_guest(subject, &plugged, access, effort).await?);
            }
            let Access { verb, block, depth } = access;
            let size = if block < 1 << 20 { "4k" } else { "1M" };
            let row = Row::ratio(
                format!("{verb} {size}, queue depth {depth}, aio {aio}, {controller}"),
                Series::rates("container", ours),
                Series::rates("guest", raw),
            );
            rows.push(row.goal_if(judged, GOAL));
        }
        subject.unplug(&subject.container).await;
    }
    Ok(rows)
}

fn accesses(effort: Effort) -> impl Iterator<Item = Access> {
    let blocks: &[u32] = if effort.one_way { &[4 << 10] } else { &[4 << 10, 1 << 20] };
    let with_depth = |block: u32| [1, 32].map(|depth| (block, depth));
    let of_all = blocks.iter().copied().flat_map(with_depth).collect::<Vec<_>>();
    let verbs = |(block, depth)| ["read", "write"].map(|verb| Access { verb, block, depth });
    of_all.into_iter().flat_map(verbs)
}

async fn plug(subject: &Subject, aio: &'static str) -> Result<Plugged, Error> {
    let change = Fault::edit_json(move |line| line["arguments"]["file"]["aio"] = aio.into());
    // The first one tells whether the descriptor set is another's, and is refused.
    let rule = Rule::on(command("blockdev-add"), change).nth(2);
    let proxy = QmpProxy::start_with(&subject.sandbox.qmp_socket(), [rule])?;
    let plug = subject.plug_command(&subject.container);
    let finished = plug.args([OsStr::new("--qmp"), proxy.path().as_os_str()]).run().await;
    let plugged = finished.succeeded(subject.sandbox.guest()).remove(0);
    proxy.assert_all_met();
    subject.restore_state()?;
    Ok(plugged)
}

async fn in_container(subject: &Subject, access: Access, effort: Effort) -> Result<u64, Error> {
    let command = arguments(OBSERVER, PATH, access, effort);
    let output = subject.container.try_exec(&command, b"").await?;
    rate(output.status, &output.text(), &output.error_text())
}

async fn in_guest(
    subject: &Subject,
    plugged: &Plugged,
    access: Access,
    effort: Effort,
) -> Result<u64, Error> {
    let node = Path::new("/dev").join(plugged.guest_device()).display().to_string();
    let command = arguments("/usr/bin/observer", &node, access, effort);
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let ran = subject.sandbox.observer().run(&command).await?;
    rate(ran.status, &ran.stdout, &ran.stderr)
}

fn arguments(observer: &str, node: &str, access: Access, effort: Effort) -> Vec<String> {
    let Access { verb, block, depth } = access;
    [
        observer.to_owned(),
        "throughput".to_owned(),
        node.to_owned(),
        verb.to_owned(),
        block.to_string(),
        depth.to_string(),
        effort.milliseconds.to_string(),
    ]
    .to_vec()
}

/// Reads KiB per second from the program's output, which has bytes.
fn rate(status: i32, stdout: &str, stderr: &str) -> Result<u64, Error> {
    let bytes: Option<u64> = stdout.trim().parse().ok();
    bytes.filter(|_| status == 0).map(|bytes| bytes / 1024).ok_or_else(|| Error::Failed {
        command: "observer throughput".to_owned(),
        message: format!("exit status {status}: {stdout}{stderr}"),
    })
}
