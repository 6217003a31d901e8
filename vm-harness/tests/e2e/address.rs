//! The address of a disk on its controller: the host chooses one, and QEMU decides whether it is
//! free. The fault point lets each run begin with the same one.

use rstest::rstest;
use vm_harness::{Container, Plugged, Sandbox, Volume};

use super::{
    MIB,
    hot_unplug::{at, unplug},
    sandbox,
};

/// Plugs the volumes in one call, beginning with the first address of all.
async fn plug_from_first_address(
    sandbox: &Sandbox,
    container: &Container,
    volumes: &[(&Volume, &str)],
) -> Vec<Plugged> {
    let command = sandbox.ecr_runtime_with_faults("first-address=value:0");
    let finished = command.hot_plug(sandbox.id(), container.id(), volumes).run().await;
    finished.succeeded(sandbox.guest())
}

fn luns(plugged: &[Plugged]) -> Vec<u64> {
    plugged.iter().map(|volume| volume.volume["scsi"]["lun"].as_u64().unwrap()).collect()
}

#[rstest]
#[tokio::test]
async fn an_address_that_another_volume_has_is_left_out(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volumes: Vec<_> = (0..4).map(|_| Volume::image(MIB)).collect();
    let paths = ["/dev/xvda", "/dev/xvdb", "/dev/xvdc", "/dev/xvdd"];
    let pairs: Vec<_> = volumes.iter().zip(paths).collect();
    let first = plug_from_first_address(&sandbox, &container, &pairs[..1]).await;
    let second = plug_from_first_address(&sandbox, &container, &pairs[1..2]).await;
    let both = plug_from_first_address(&sandbox, &container, &pairs[2..]).await;
    let used = [luns(&first), luns(&second), luns(&both)].concat();
    let mut distinct = used.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!((used[0], distinct.len()), (1, 4), "{used:?}");
    for (volume, path) in pairs {
        assert_eq!(container.read(path, 0..65536).await, volume.bytes(0..65536));
    }
}

#[rstest]
#[tokio::test]
async fn an_address_is_used_again_right_after_an_unplug(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    for _ in 0..3 {
        let volume = Volume::image(MIB);
        let pair = [(&volume, "/dev/xvda")];
        let plugged = plug_from_first_address(&sandbox, &container, &pair).await;
        assert_eq!(luns(&plugged), [1]);
        assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
        unplug(&sandbox, &at(&container, "/dev/xvda")).await;
    }
}
