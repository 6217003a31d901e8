//! `--trace`: what happens when in one hot-plug, on the host and in the guest, on one clock.
//!
//! Proxies tell when each message to QEMU and to the agent passes; the guest's kernel tells in its
//! log when it has found the disk
//! ([/dev/kmsg](https://www.kernel.org/doc/Documentation/ABI/testing/dev-kmsg)). The offset of its
//! clock comes from marks that the observer writes to that log: each is between two moments of the
//! host, and the shortest such time bounds the error.

use std::{
    ffi::OsString,
    time::{Duration, Instant},
};

use guest_observer::{Reply, Request};
use serde_json::Value;
use vm_harness::{AgentProxy, Error, ObserverConnection, QmpProxy};

use super::{hot_plug::HotPlug, subject::Subject};

const ROUNDS: usize = 11;
const MARKS: usize = 20;
/// A gap of at least so many microseconds is pointed out.
const GAP: i64 = 500;

/// What happened, in microseconds since the start of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Event {
    at: i64,
    side: &'static str,
    what: String,
}

/// One traced hot-plug.
struct Traced {
    whole: Duration,
    events: Vec<Event>,
    stages: Value,
}

/// Traces some hot-plugs, and prints the one whose time is the median.
pub(super) async fn print(subject: &Subject, direct: &HotPlug) -> Result<(), Error> {
    let mut observer = subject.sandbox.observer().open().await?;
    let mut traced = Vec::new();
    for round in 0..ROUNDS {
        traced.push(trace(subject, &mut observer, round).await?);
        subject.unplug(&subject.container).await;
    }
    traced.sort_by_key(|traced| traced.whole);
    let Traced { whole, mut events, stages } = traced.swap_remove(ROUNDS / 2);
    events.sort_by_key(|event| event.at);
    println!("\n### Trace of a hot-plug\n");
    println!(
        "{:.2} ms; {:.2} ms at the median without the proxies that tell the time of each message.",
        whole.as_secs_f64() * 1000.0,
        direct.plug.whole.median() as f64 / 1000.0
    );
    println!("{}\n", direct.account());
    println!("The stages that it reports: {stages}\n");
    println!("| ms | gap | where | what |\n|---|---|---|---|");
    let mut last = 0;
    for Event { at, side, what } in events {
        let gap = at - last;
        let (begin, end) = if gap >= GAP { ("**", "**") } else { ("", "") };
        let [at_ms, gap_ms] = [at, gap].map(|micros| micros as f64 / 1000.0);
        println!("| {at_ms:.2} | {begin}{gap_ms:.2}{end} | {side} | {what} |");
        last = at;
    }
    Ok(())
}

async fn trace(
    subject: &Subject,
    observer: &mut ObserverConnection,
    round: usize,
) -> Result<Traced, Error> {
    let sandbox = &subject.sandbox;
    let qmp = QmpProxy::start(&sandbox.qmp_socket())?;
    let agent = AgentProxy::start(&sandbox.run_directory().vm().join("vm.vsock"))?;
    let through: [OsString; 4] =
        ["--qmp".into(), qmp.path().into(), "--agent".into(), agent.address(sandbox).into()];
    let clock = Clock::measure(observer, round).await?;
    let start = Instant::now();
    let call = subject.call(&subject.plug_command(&subject.container).args(through)).await;
    subject.restore_state()?;
    let whole = call.whole;
    let mut events = vec![Event {
        at: i64::try_from(whole.as_micros()).unwrap_or(i64::MAX),
        side: "host",
        what: "the process has ended".to_owned(),
    }];
    for (lines, started, side) in
        [(qmp.lines(), qmp.started(), "QEMU"), (agent.lines(), agent.started(), "agent")]
    {
        let offset = micros_between(start, started);
        events.extend(lines.iter().filter_map(|line| {
            let at = offset + line["at_us"].as_i64()?;
            Some(Event { at, side, what: message(line) })
        }));
    }
    let log = kernel_log(observer).await?;
    let after_start = |event: &Event| event.at >= 0;
    events.extend(clock.events(&log, start).into_iter().filter(after_start));
    Ok(Traced { whole, events, stages: call.stages })
}

/// The host's moment of the guest's time zero.
struct Clock {
    /// A moment of the host, and the guest's microseconds then.
    host: Instant,
    guest: i64,
    error: Duration,
}

impl Clock {
    async fn measure(observer: &mut ObserverConnection, round: usize) -> Result<Self, Error> {
        let mut marks = Vec::new();
        for index in 0..MARKS {
            let name = format!("bench-mark-{round}-{index}");
            let before = Instant::now();
            let contents = format!("{name}\n");
            observer.ask(&Request::Write { path: "/dev/kmsg".to_owned(), contents }).await?;
            marks.push((name, before, before.elapsed()));
        }
        let log = kernel_log(observer).await?;
        let (name, before, trip) =
            marks.into_iter().min_by_key(|(_, _, trip)| *trip).unwrap_or_else(|| unreachable!());
        let guest = log.iter().find(|(_, text)| text.contains(&name)).map(|(at, _)| *at);
        let guest =
            guest.ok_or_else(|| Error::Observer(format!("the kernel's log has no line {name}")))?;
        Ok(Self { host: before + trip / 2, guest, error: trip / 2 })
    }

    /// Returns what the kernel logs of a disk.
    fn events(&self, log: &[(i64, String)], start: Instant) -> Vec<Event> {
        let zero = micros_between(start, self.host) - self.guest;
        let of_disk = |text: &str| text.contains("Direct-Access") || text.contains("Attached SCSI");
        let event = |(at, text): &(i64, String)| Event {
            at: zero + at,
            side: "guest",
            what: format!("{text} (± {:.2} ms)", self.error.as_secs_f64() * 1000.0),
        };
        log.iter().filter(|(_, text)| of_disk(text)).map(event).collect()
    }
}

/// Returns the lines of the kernel's log with their microseconds.
async fn kernel_log(observer: &mut ObserverConnection) -> Result<Vec<(i64, String)>, Error> {
    let argv = ["/bin/busybox", "dmesg"].map(str::to_owned).to_vec();
    match observer.ask(&Request::Run { argv, stdin: None }).await? {
        Reply::Ran { stdout, .. } => Ok(stdout.lines().filter_map(log_line).collect()),
        other => Err(Error::Observer(format!("unexpected reply {other:?}"))),
    }
}

/// Reads `[  SECONDS.MICROS] TEXT`.
fn log_line(line: &str) -> Option<(i64, String)> {
    let (time, text) = line.strip_prefix('[')?.split_once("] ")?;
    let (seconds, micros) = time.trim().split_once('.')?;
    let at = seconds.parse::<i64>().ok()? * 1_000_000 + micros.parse::<i64>().ok()?;
    Some((at, text.trim().to_owned()))
}

/// Returns what a message of a proxy's record is.
fn message(line: &Value) -> String {
    let content = &line["line"];
    let named = ["execute", "event", "request", "response"].map(|key| content[key].as_str());
    let what = match named.into_iter().flatten().next() {
        Some(name) => name,
        None if content["QMP"].is_object() => "greeting",
        None if content["error"].is_object() => "error",
        None if content.get("return").is_some() => "return",
        None => content.as_str().unwrap_or("message"),
    };
    match line["from"].as_str() {
        Some("client") => format!("→ {what}"),
        _ => format!("← {what}"),
    }
}

/// Returns the microseconds from `start` to `moment`, which may be earlier.
fn micros_between(start: Instant, moment: Instant) -> i64 {
    let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
    match moment.checked_duration_since(start) {
        Some(after) => micros(after),
        None => -micros(start - moment),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn guest_events_are_placed_on_the_clock_of_the_host() {
        let start = Instant::now();
        let host = start + Duration::from_millis(2);
        let clock = Clock { host, guest: 7_000_000, error: Duration::from_micros(300) };
        let log = ["[    7.001500] sd 0:0:1:2: [sda] Attached SCSI disk", "[    7.1] other"];
        let log: Vec<_> = log.into_iter().filter_map(log_line).collect();
        let events = clock.events(&log, start);
        assert_eq!(events.len(), 1);
        assert_eq!((events[0].at, events[0].side), (3500, "guest"));
        assert_eq!(log_line("no time"), None);
    }

    #[test]
    fn messages_are_named() {
        let named = |from: &str, line: Value| message(&json!({ "from": from, "line": line }));
        assert_eq!(named("client", json!({ "execute": "add-fd" })), "→ add-fd");
        assert_eq!(named("server", json!({ "return": {} })), "← return");
        assert_eq!(named("server", json!({ "event": "E" })), "← E");
        assert_eq!(named("client", json!("CONNECT 1024")), "→ CONNECT 1024");
        assert_eq!(named("server", json!({ "bytes": 3 })), "← message");
        assert_eq!(named("server", json!({ "bytes": 3, "response": "Probe" })), "← Probe");
        assert_eq!(named("server", json!({ "QMP": {} })), "← greeting");
    }
}
