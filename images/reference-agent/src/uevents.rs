//! A log line for each device event of the kernel (`NETLINK_KOBJECT_UEVENT`), on the console.
//!
//! kata-agent listens for these events all the time and logs each as a line of JSON. The lines cost
//! time on a serial console, and a hot-plug causes ten of them, so a benchmark can have an agent
//! that writes them, too.

use std::{io, time::SystemTime};

use netlink_sys::{
    AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket,
    protocols::NETLINK_KOBJECT_UEVENT,
};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;

/// What kata-agent shows of an event.
const SHOWN: [&str; 6] = ["ACTION", "DEVPATH", "DEVNAME", "SUBSYSTEM", "SEQNUM", "INTERFACE"];

/// Logs events from now on, in a task.
///
/// # Errors
/// The kernel refuses a socket.
pub(crate) fn log() -> io::Result<()> {
    let mut socket = TokioSocket::new(NETLINK_KOBJECT_UEVENT)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 1))?;
    tokio::spawn(async move {
        // As in kata-agent, a thread of tokio's writes to the console.
        let mut console = tokio::io::stdout();
        loop {
            let written = match socket.recv_from_full().await {
                // Only the kernel has port 0.
                Ok((_, sender)) if sender.port_number() != 0 => Ok(()),
                Ok((message, _)) => console.write_all(line(&message).as_bytes()).await,
                Err(error) => Err(error),
            };
            if let Err(error) = written {
                tracing::error!("an event of the kernel was not logged: {error}");
            }
        }
    });
    Ok(())
}

fn line(message: &[u8]) -> String {
    let text = String::from_utf8_lossy(message);
    let pairs = text.split('\0').filter_map(|part| part.split_once('='));
    let shown: Vec<_> = pairs.filter(|(key, _)| SHOWN.contains(key)).collect();
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let line = json!({
        "msg": "got uevent message",
        "level": "INFO",
        "ts": format!("{}.{:09}", now.as_secs(), now.subsec_nanos()),
        "event": format!("{shown:?}"),
        "subsystem": "uevent",
        "name": "reference-agent",
        "pid": std::process::id().to_string(),
        "source": "agent",
        "version": env!("CARGO_PKG_VERSION"),
    });
    format!("{line}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_shows_what_kata_agent_shows() {
        let message = b"add@/block/sda\0ACTION=add\0DEVPATH=/block/sda\0SUBSYSTEM=block\0MAJOR=8\0\
            DEVNAME=sda\0DEVTYPE=disk\0SEQNUM=529\0";
        let line = line(message);
        let json: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            json["event"],
            r#"[("ACTION", "add"), ("DEVPATH", "/block/sda"), ("SUBSYSTEM", "block"), ("DEVNAME", "sda"), ("SEQNUM", "529")]"#
        );
        assert_eq!((&json["msg"], &json["level"]), (&json!("got uevent message"), &json!("INFO")));
        assert!(line.ends_with('\n') && line.len() > 200, "{line}");
    }

    #[test]
    fn bytes_that_are_no_text_stay_in_their_line() {
        let line = line(b"change@/a\0DEVPATH=/a\n\xff\0");
        assert_eq!(line.matches('\n').count(), 1, "{line}");
    }
}
