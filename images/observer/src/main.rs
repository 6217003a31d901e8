//! The observer: one thread for each connection of the harness. The library documents the protocol.
//!
//! The guest's init starts it, and it runs beside the agent. A panic ends one connection, not the
//! observer. In a container it plays the attacker (see `swap` and `hold`), and beside udev a
//! program that takes a disk for a moment (`claim`). It also measures reads and writes of a disk
//! (`throughput`), and waits for a file system (`arrival`).

mod agent_state;
mod arrival;
mod claim;
mod descriptors;
mod floor;
mod hold;
mod programs;
mod restored;
mod run;
mod swap;
mod throughput;

use std::{
    env,
    error::Error,
    fs::{self, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    path::Path,
    thread,
    time::Duration,
};

use floor::Uevents;
use guest_observer::{PORT, Reply, Request};
use throughput::Load;
use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

fn main() -> io::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if !words.is_empty() {
        return attack(&words);
    }
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, PORT)?;
    loop {
        let (stream, _) = listener.accept()?;
        thread::spawn(move || {
            if let Err(error) = serve(&stream) {
                eprintln!("observer: connection ended: {error}");
            }
        });
    }
}

/// Plays the attacker, or measures.
fn attack(words: &[&str]) -> io::Result<()> {
    let number = |text: &str| text.parse().map_err(io::Error::other);
    match *words {
        ["swap", directory, first, second] => {
            println!("{}", swap::swap(Path::new(directory), first, second)?);
            Ok(())
        }
        ["hold", kind, node, directory] => {
            println!("{}", hold::hold(kind, Path::new(node), Path::new(directory))?);
            Ok(())
        }
        ["flood", processes, descriptors, user] => {
            let user = user.parse().map_err(io::Error::other)?;
            descriptors::flood(number(processes)?, descriptors, user)
        }
        ["fill", descriptors] => descriptors::fill(number(descriptors)?),
        ["await", file] => arrival::wait(Path::new(file), io::stdout().lock()),
        ["claim", node, release] => claim::claim(Path::new(node), Path::new(release)),
        ["throughput", node, kind @ ("read" | "write"), block, depth, milliseconds] => {
            let time = Duration::from_millis(milliseconds.parse().map_err(io::Error::other)?);
            let depth = depth.parse().map_err(io::Error::other)?;
            let load = Load { writes: kind == "write", block: number(block)?, depth, time };
            println!("{}", throughput::run(Path::new(node), load)?);
            Ok(())
        }
        ["hide", path] => descriptors::hide(Path::new(path), false),
        ["hide", path, "alone"] => descriptors::hide(Path::new(path), true),
        _ => Err(io::Error::other(format!("unknown attack {words:?}"))),
    }
}

fn serve(stream: &VsockStream) -> io::Result<()> {
    let mut uevents = None;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        let reply = match serde_json::from_str(&line) {
            Ok(request) => answer(request, &mut uevents)
                .unwrap_or_else(|error| Reply::Error { message: error.to_string() }),
            Err(error) => Reply::Error { message: format!("not a request: {error}") },
        };
        let mut text = serde_json::to_string(&reply)?;
        text.push('\n');
        (&mut &*stream).write_all(text.as_bytes())?;
        line.clear();
    }
    Ok(())
}

fn answer(request: Request, uevents: &mut Option<Uevents>) -> Result<Reply, Box<dyn Error>> {
    match request {
        Request::Run { argv, stdin } => run::run(&argv, stdin),
        Request::Write { path, contents } => {
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .open(&path)
                .and_then(|mut file| file.write_all(contents.as_bytes()))
                .map_err(|error| format!("writing {path}: {error}"))?;
            Ok(Reply::Done)
        }
        Request::Read { path } => {
            let contents = fs::read(&path).map_err(|error| format!("reading {path}: {error}"))?;
            Ok(Reply::Contents { contents: String::from_utf8_lossy(&contents).into_owned() })
        }
        Request::Programs { cgroup } => {
            Ok(Reply::Programs { programs: programs::attached(&cgroup)? })
        }
        Request::AttachProgram { cgroup, instructions } => {
            programs::attach(&cgroup, &instructions)?;
            Ok(Reply::Done)
        }
        Request::AgentState => Ok(Reply::AgentState(agent_state::read()?)),
        Request::OpenUevents => {
            *uevents = Some(Uevents::open()?);
            Ok(Reply::Done)
        }
        Request::Scan(address) => {
            let uevents = uevents.as_mut().ok_or("no uevent socket is open on this connection")?;
            Ok(Reply::Block { name: floor::scan(uevents, address)? })
        }
        Request::Mount(address) => {
            let uevents = uevents.as_mut().ok_or("no uevent socket is open on this connection")?;
            let name = floor::scan(uevents, address)?;
            floor::mount(&name)?;
            Ok(Reply::Block { name })
        }
        Request::Unmount(address) => {
            floor::unmount()?;
            floor::delete(address)?;
            Ok(Reply::Done)
        }
        Request::Delete(address) => {
            floor::delete(address)?;
            Ok(Reply::Done)
        }
        Request::Restored { seconds, nanoseconds, seed } => {
            restored::set_clock(seconds, nanoseconds)?;
            restored::reseed(&seed)?;
            Ok(Reply::Done)
        }
    }
}
