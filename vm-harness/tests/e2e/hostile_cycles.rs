//! Cycles of plug and forced unplug of a container that attacks each of them. It has the default
//! capabilities of Docker and no device filter, as in a stock Kata guest. Whatever it does, the
//! unplug succeeds in time, and nothing is left when the attack is over.

use std::{collections::BTreeMap, time::Duration};

use rstest::rstest;
use vm_harness::{Container, ContainerOptions, Sandbox, Snapshot, Volume, mount};

use super::{
    MIB,
    hot_unplug::{at, query_volumes, unplug, unplug_command},
    sandbox,
};

/// The `--timeout` of an unplug, with KVM.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What the container does around one plug and unplug.
struct Attack {
    name: &'static str,
    path: &'static str,
    /// Before the plug.
    before: &'static str,
    /// Between plug and unplug. A process that it leaves behind is killed afterwards.
    during: &'static str,
}

const fn on_volume(name: &'static str, during: &'static str) -> Attack {
    Attack { name, path: "/dev/xvda", before: "true", during }
}

const ATTACKS: [Attack; 13] = [
    on_volume(
        "descriptors",
        "for i in 1 2 3; do (exec 5<>/dev/xvda; exec sleep 1000) & done",
    ),
    on_volume(
        "stopped holder",
        "(exec 5<>/dev/xvda; exec sleep 1000) & usleep 50000; kill -STOP $!",
    ),
    on_volume(
        "opens without end",
        "(while :; do : <>/dev/xvda; usleep 500; done) & (while :; do : </dev/xvda; usleep 700; done) &",
    ),
    on_volume("writes without end", "(while :; do dd if=/dev/zero of=/dev/xvda bs=64k; done) &"),
    on_volume(
        "a thread's descriptors",
        "/dev/observer hide /dev/xvda >/dev/ready & until test -s /dev/ready; do usleep 10000; done",
    ),
    on_volume(
        "names that are no text",
        r"(printf '\377) S\n\033[2J(' >/proc/self/comm; exec 5<>/dev/xvda; read line <>/dev/ptmx) &
        mkdir -p /dev/parent; mv /dev/parent $(printf '/dev/\377')",
    ),
    on_volume("flood of descriptors", "/dev/observer flood 12 2000 1000"),
    on_volume("descriptor of the node", "/dev/observer hold descriptor /dev/xvda /dev/held & "),
    on_volume("node in a socket", "/dev/observer hold socket /dev/xvda /dev/held &"),
    on_volume("copy of the mount", "/dev/observer hold namespace /dev/xvda /dev/held &"),
    Attack {
        name: "moved parent",
        path: "/dev/d/xvda",
        before: "mkdir /dev/d",
        during: "mv /dev/d /dev/e; ln -s /etc /dev/d",
    },
    Attack {
        name: "links and renames",
        path: "/dev/d/xvda",
        before: "mkdir /dev/d",
        during: "mkdir /dev/arena /dev/links; mkdir /dev/arena/a /dev/arena/b
            up=$(i=0; while [ $i -lt 1300 ]; do printf ../; i=$((i+1)); done)
            i=0; while [ $i -lt 36 ]; do ln -s ${up}dev/links/$((i+1)) /dev/links/$i; i=$((i+1)); done
            ln -s ${up}dev/e /dev/links/36; mv /dev/d /dev/e; ln -s links/0 /dev/d
            /dev/observer swap /dev/arena a b >/dev/null & /dev/observer swap /dev/arena a b >/dev/null &",
    },
    Attack {
        name: "exchanged parent",
        path: "/dev/arena/a/x",
        before: "mkdir -p /dev/arena/a; ln -s /etc /dev/arena/b
            /dev/observer swap /dev/arena a b >/dev/null &",
        during: "true",
    },
];

async fn run_script(container: &Container, script: &str) {
    // The background processes must not keep the command's outputs open.
    let script = format!("exec </dev/null >/dev/null 2>/dev/log.txt; {script}");
    container.exec(&["sh", "-c", &script]).await;
}

/// Ends what the attack left: all processes but the first and the one that does it.
async fn clean_up(container: &Container) {
    let script = "for pid in $(ls /proc | grep '^[0-9][0-9]*$'); do
            case $pid in 1|$$) ;; *) kill -9 $pid 2>/dev/null;; esac; done
        while ls /proc | grep '^[0-9][0-9]*$' | while read pid; do
            case $pid in 1|$$) continue;; esac
            grep -aq 'State:.*Z' /proc/$pid/status 2>/dev/null && continue
            test \"$(cat /proc/$pid/comm 2>/dev/null)\" = observer -o \
                 \"$(cat /proc/$pid/comm 2>/dev/null)\" = dd && echo $pid
        done | grep -q .; do usleep 10000; done
        rm -rf /dev/d /dev/e /dev/arena /dev/links /dev/held /dev/ready /dev/parent /dev/log.txt /dev/xvda \
            $(printf '/dev/\\377')";
    container.exec(&["sh", "-c", script]).await;
}

/// Runs `count` cycles, and prints how long the unplugs of each attack took at most.
pub(crate) async fn hostile_cycles(sandbox: &Sandbox, count: usize) {
    // A shell, because it waits for the processes that lose their parent.
    let first = ["/bin/sh", "-c", "while :; do sleep 1000; done"].map(str::to_owned).to_vec();
    let options = ContainerOptions {
        command: first,
        mounts: vec![mount("/dev/observer", "bind", "/usr/bin/observer", &["bind", "ro"])],
        ..ContainerOptions::default()
    };
    let container = sandbox.start_container_with(&options).await;
    let sibling = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let before = Snapshot::of(sandbox, &[&container, &sibling]).await;
    let timeout = sandbox.guest().scaled(TIMEOUT);
    let limit = format!("{}s", timeout.as_secs());
    let (mut longest, mut refused) = (BTreeMap::<&str, Duration>::new(), 0);
    for attack in ATTACKS.iter().cycle().take(count) {
        run_script(&container, &format!("mkdir -p /dev/held; {}", attack.before)).await;
        let plug = sandbox.hot_plug_command(&container, &[(&volume, attack.path)]).run().await;
        if plug.status == 0 {
            run_script(&container, attack.during).await;
            let unplug = unplug_command(sandbox, &container, attack.path)
                .args(["--force", "--timeout", &limit])
                .run()
                .await;
            assert_eq!(unplug.status, 0, "{}: {}{}", attack.name, unplug.stdout, unplug.stderr);
            assert!(unplug.elapsed < timeout, "{}: {:?}", attack.name, unplug.elapsed);
            let known = longest.entry(attack.name).or_default();
            *known = unplug.elapsed.max(*known);
        } else {
            // The parent is not the directory that it was at this moment.
            assert_eq!(attack.name, "exchanged parent", "{}{}", plug.stdout, plug.stderr);
            refused += 1;
        }
        assert!(query_volumes(sandbox, "list", &[]).await.is_empty(), "{}", attack.name);
        clean_up(&container).await;
    }
    // The next request notices that nothing refers to the former nodes any more.
    sandbox.hot_plug(&sibling, &volume, "/dev/xvda").await;
    unplug(sandbox, &at(&sibling, "/dev/xvda")).await;
    before.assert_unchanged(sandbox, &[&container, &sibling]).await;
    println!("{count} cycles, {refused} plugs refused; the longest unplug of each attack:");
    longest.iter().for_each(|(name, time)| println!("{name:24} {time:?}"));
    println!("of all: {:?} of {timeout:?}", longest.values().max().unwrap());
}

#[rstest]
#[tokio::test]
async fn forced_unplugs_beside_every_attack_end_in_time(#[future(awt)] sandbox: Sandbox) {
    hostile_cycles(&sandbox, 20).await;
}
