//! Processes of the node, found by their command lines
//! ([`/proc/pid/cmdline`](https://man7.org/linux/man-pages/man5/proc_pid_cmdline.5.html)).

use std::{fs, path::Path};

/// Returns the QEMU of a sandbox, with the wrapper's monitor.
pub(super) fn qemu_of(sandbox: &str) -> Option<u32> {
    find(|words| {
        let named = |word: &str| word.split(',').any(|part| part == format!("sandbox-{sandbox}"));
        words.iter().any(|word| named(word))
            && words.iter().any(|word| word.contains("ecr-monitor"))
    })
}

/// Returns the shim of a pod.
pub(super) fn shim_of(sandbox: &str) -> Option<u32> {
    find(|words| {
        words[0].contains("containerd-shim") && words.windows(2).any(|two| two == ["-id", sandbox])
    })
}

/// Whether a process has opened this device.
pub(super) fn has_open(process: u32, device: &str) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    let mut links = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
    links.any(|link| link == Path::new(device))
}

fn find(is_wanted: impl Fn(&[&str]) -> bool) -> Option<u32> {
    let entries = fs::read_dir("/proc").expect("the node has /proc").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(|process| {
        let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        let words: Vec<&str> = line.split_terminator('\0').collect();
        !words.is_empty() && is_wanted(&words)
    })
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn processes_of_a_sandbox_are_found_by_their_arguments() {
        let start = |arguments: &[&str]| {
            let mut command = Command::new("sh");
            command.args(["-c", "echo; read line"]).args(arguments);
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            // A process has its command line some time after the start has returned.
            child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
            child
        };
        let sandbox = format!("{:x}", fastrand::u128(..));
        let name = format!("sandbox-{sandbox},debug-threads=on");
        let mut qemu = start(&["-name", &name, "-chardev", "socket,id=ecr-monitor,fd=3"]);
        assert_eq!(qemu_of(&sandbox), Some(qemu.id()));
        assert_eq!((qemu_of(&sandbox[1..]), shim_of(&sandbox)), (None, None));
        assert!(has_open(std::process::id(), "/dev/null") || !Path::new("/dev/null").exists());
        qemu.kill().unwrap();
        qemu.wait().unwrap();
    }
}
