//! What each kind of device node costs a plug and an unplug.

use std::time::Duration;

use rstest::rstest;
use vm_harness::{Container, Sandbox, Volume};

use crate::{
    MIB, guarded,
    hot_unplug::{unplug_command, verb},
    sandbox,
};

/// How often each is measured, in turns.
const ROUNDS: usize = 25;

#[rstest]
#[tokio::test]
async fn plugs_and_unplugs_with_each_kind_of_node(#[future(awt)] sandbox: Sandbox) {
    let containers = [
        ("mknod", sandbox.start_container_with(&guarded()).await),
        ("bind", sandbox.start_container().await),
    ];
    let volume = Volume::loop_device(MIB);
    let mut times = [(); 2].map(|()| (Vec::new(), Vec::new()));
    for _ in 0..ROUNDS {
        for ((kind, container), (plugs, unplugs)) in containers.iter().zip(&mut times) {
            let (plug, unplug) = cycle(&sandbox, container, &volume, kind).await;
            plugs.push(plug);
            unplugs.push(unplug);
        }
    }
    for ((kind, _), (plugs, unplugs)) in containers.iter().zip(times) {
        let (plug, unplug) = (best_and_median(plugs), best_and_median(unplugs));
        println!("{kind}: plug {plug}, unplug {unplug}, whole processes");
    }
    let left = verb(sandbox.ecr_runtime(), &sandbox, "list", &[]).run().await;
    assert_eq!(left.json()["volumes"], serde_json::json!([]));
}

async fn cycle(
    sandbox: &Sandbox,
    container: &Container,
    volume: &Volume,
    kind: &str,
) -> (Duration, Duration) {
    let plugged = sandbox.hot_plug_command(container, &[(volume, "/dev/xvda")]).run().await;
    assert_eq!(plugged.succeeded(sandbox.guest())[0].text("node"), kind);
    let unplugged = unplug_command(sandbox, container, "/dev/xvda").run().await;
    assert_eq!(unplugged.status, 0, "{}{}", unplugged.stdout, unplugged.stderr);
    (plugged.elapsed, unplugged.elapsed)
}

fn best_and_median(mut times: Vec<Duration>) -> String {
    times.sort();
    format!("{:.1?} / {:.1?}", times[0], times[times.len() / 2])
}
