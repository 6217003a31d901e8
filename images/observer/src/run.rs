//! Runs a program for the harness.

use std::{
    error::Error,
    io::Write,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    thread,
};

use guest_observer::Reply;

const BUSYBOX: &str = "/bin/busybox";

/// Runs `argv` to its end.
pub(crate) fn run(argv: &[String], stdin: Option<String>) -> Result<Reply, Box<dyn Error>> {
    let (program, arguments) = argv.split_first().ok_or("an empty argument list")?;
    let mut command = if is_program(program) {
        Command::new(program)
    } else {
        let mut busybox = Command::new(BUSYBOX);
        busybox.arg(program);
        busybox
    };
    let mut child = command
        .args(arguments)
        .stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("running {program}: {error}"))?;
    // On a separate thread, because the program may fill its output before it has read its input.
    // It need not read all of its input, so a broken pipe is not an error.
    let writer = stdin.zip(child.stdin.take()).map(|(text, mut pipe)| {
        thread::spawn(move || {
            let _ = pipe.write_all(text.as_bytes());
        })
    });
    let output = child.wait_with_output()?;
    if let Some(writer) = writer {
        writer.join().map_err(|_| "the thread that wrote the input panicked")?;
    }
    Ok(Reply::Ran {
        status: status_number(output.status),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn is_program(name: &str) -> bool {
    name.contains('/')
        || ["/usr/bin", "/usr/sbin", "/bin"]
            .iter()
            .any(|directory| Path::new(directory).join(name).exists())
}

fn status_number(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(argv: &[&str], stdin: Option<&str>) -> Reply {
        let argv: Vec<_> = argv.iter().map(|&word| word.to_owned()).collect();
        run(&argv, stdin.map(str::to_owned)).unwrap()
    }

    #[test]
    fn the_reply_has_output_error_output_and_status() {
        let script = "read line; echo \"$line\"; echo oops >&2; exit 3";
        let expected = Reply::Ran { status: 3, stdout: "hello\n".into(), stderr: "oops\n".into() };
        assert_eq!(ran(&["sh", "-c", script], Some("hello\n")), expected);
    }

    #[test]
    fn the_status_after_a_signal_is_128_plus_its_number() {
        let expected = Reply::Ran { status: 137, stdout: String::new(), stderr: String::new() };
        assert_eq!(ran(&["sh", "-c", "kill -9 $$"], None), expected);
    }

    #[test]
    fn unread_input_is_not_an_error() {
        let input = "x".repeat(1 << 20);
        let expected = Reply::Ran { status: 0, stdout: String::new(), stderr: String::new() };
        assert_eq!(ran(&["sh", "-c", "exec <&-; exit 0"], Some(&input)), expected);
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&["/nowhere/x".to_owned()], None).unwrap_err();
        assert!(error.to_string().starts_with("running /nowhere/x: "), "{error}");
    }
}
