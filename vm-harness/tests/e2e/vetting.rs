//! Vetting of sources on a "host" with features that the host of these tests may not have: device
//! mapper, md, partitions, and a root file system on device mapper. The guest acts as this host:
//! its disks are disks like any other.

use serde_json::Value;
use vm_harness::{Machine, Observer, Volume};

use super::{MIB, boot};

/// Vets `path` in the guest. Returns the volume, or the exit status and the message of a refusal.
async fn vet(guest: &Observer, program: &[&str], path: &str) -> Result<Value, (i32, String)> {
    let ran = guest.run(&[program, &["source", path]].concat()).await.unwrap();
    match ran.status {
        0 => Ok(serde_json::from_str(&ran.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", ran.stdout))),
        status => Err((status, ran.stderr)),
    }
}

#[tokio::test]
async fn disks_below_device_mapper_md_and_the_root_are_refused() {
    let modules = "guest.modules=dm_mod,raid1,loop".to_owned();
    let sandbox = boot(&Machine { kernel_parameters: vec![modules], ..Machine::default() }).await;
    let container = sandbox.start_container().await;
    let (volume, other) = (Volume::image(16 * MIB), Volume::image(16 * MIB));
    let [disk, other] =
        [(&volume, "/dev/xvda"), (&other, "/dev/xvdb")].map(async |(volume, path)| {
            format!("/dev/{}", sandbox.hot_plug(&container, volume, path).await.guest_device())
        });
    let (disk, other) = (disk.await, other.await);
    let guest = sandbox.observer();
    let probe = ["/usr/bin/agent-probe"];
    let free = vet(guest, &probe, &disk).await.unwrap();
    assert_eq!((free["size"].as_u64(), &free["claimed"]), (Some(16 * MIB), &true.into()), "{free}");

    for (holder, hold, release) in [
        (
            "the device dm-0 (made)",
            "dmsetup create --noudevsync made --table '0 2048 linear DISK 0'",
            "dmsetup remove --noudevsync made",
        ),
        (
            "the device md0",
            "mdadm --build /dev/md0 --level=1 --raid-devices=1 --force --run DISK",
            "mdadm --stop /dev/md0",
        ),
        ("the loop device loop0", "losetup /dev/loop0 DISK", "losetup -d /dev/loop0"),
    ] {
        guest.shell(&format!("{} 2>&1", hold.replace("DISK", &disk))).await;
        let (status, message) = vet(guest, &probe, &disk).await.unwrap_err();
        assert_eq!(status, 6, "{message}");
        assert!(message.contains(&format!("held by {holder}")), "{message}");
        guest.shell(&format!("{release} 2>&1")).await;
        vet(guest, &probe, &disk).await.unwrap();
    }

    // A mapping and a partition can be volumes. While one is in use, the disk below it is held.
    let script = "dmsetup create --noudevsync made --table '0 16384 linear DISK 2048' && dmsetup mknodes &&
        printf 'o\\nn\\np\\n1\\n\\n\\nw\\n' | fdisk OTHER >/dev/null && mkfs.ext4 -q /dev/mapper/made && mkdir -p /mnt &&
        mount -t ext4 /dev/mapper/made /mnt && mkswap OTHER1 && swapon OTHER1";
    let script = script.replace("DISK", &disk).replace("OTHER", &other);
    let partition = format!("{other}1");
    guest.shell(&format!("({script}) 2>&1")).await;
    for (path, holder) in [
        ("/dev/mapper/made", "is mounted on /mnt"),
        (partition.as_str(), "held by the kernel's swap"),
        (other.as_str(), "held by the kernel's swap"),
    ] {
        let (status, message) = vet(guest, &probe, path).await.unwrap_err();
        assert!(status == 6 && message.contains(holder), "{path}, {status}: {message}");
    }
    guest.shell(&format!("swapoff {partition}")).await;
    let free = vet(guest, &probe, &partition).await.unwrap();
    assert_eq!(
        (&free["device"], &free["claimed"]),
        (&partition.as_str().into(), &true.into()),
        "{free}"
    );

    // With a root file system on that mapping, the disk below it is refused by its device number.
    let script = "cd /mnt && mkdir -p proc sys dev && cp /usr/bin/agent-probe . && for d in proc sys dev; do mount -o bind /$d $d; done";
    guest.shell(script).await;
    let inside = ["chroot", "/mnt", "/agent-probe"];
    for path in [disk.as_str(), "/dev/mapper/made"] {
        let (status, message) = vet(guest, &inside, path).await.unwrap_err();
        assert!(status == 6 && message.contains("root file system"), "{path}, {status}: {message}");
    }
    vet(guest, &inside, &partition).await.unwrap();
    guest
        .shell(
            "for d in proc sys dev; do umount /mnt/$d; done; umount /mnt && dmsetup remove --noudevsync made",
        )
        .await;
}

#[tokio::test]
async fn loop_devices_and_mappings_are_followed_down_to_what_is_in_use() {
    let modules = "guest.modules=dm_mod,loop".to_owned();
    let sandbox = boot(&Machine { kernel_parameters: vec![modules], ..Machine::default() }).await;
    let container = sandbox.start_container().await;
    let volumes = [Volume::image(16 * MIB), Volume::image(16 * MIB)];
    let mut disks = Vec::new();
    for (volume, path) in volumes.iter().zip(["/dev/xvda", "/dev/xvdb"]) {
        let plugged = sandbox.hot_plug(&container, volume, path).await;
        disks.push(format!("/dev/{}", plugged.guest_device()));
    }
    let [disk, other] = [&disks[0], &disks[1]];
    let guest = sandbox.observer();
    let probe = ["/usr/bin/agent-probe"];
    let script = "dmsetup create --noudevsync made --table '0 16384 linear DISK 2048' &&
        losetup /dev/loop1 OTHER && dmsetup create --noudevsync twin --table '0 2048 linear /dev/loop1 0' &&
        dmsetup mknodes && losetup /dev/loop0 /dev/mapper/made";
    let script = script.replace("DISK", disk).replace("OTHER", other);
    guest.shell(&format!("({script}) 2>&1")).await;
    for path in ["/dev/loop0", "/dev/mapper/twin"] {
        vet(guest, &probe, path).await.unwrap();
    }

    let script = "mkfs.ext4 -q /dev/mapper/made && mkdir -p /mnt &&
        mount -t ext4 /dev/mapper/made /mnt && mkswap OTHER && swapon OTHER &&
        losetup /dev/loop2 DISK";
    let script = script.replace("DISK", disk).replace("OTHER", other);
    guest.shell(&format!("({script}) 2>&1")).await;
    let swap = format!("is over /dev/loop1, over {other}, which is held by the kernel's swap");
    let mapped = format!("is over {disk}, which is held by the device dm-0 (made)");
    for (path, expected) in [
        ("/dev/loop0", "is over /dev/dm-0, which is mounted on /mnt"),
        ("/dev/loop2", mapped.as_str()),
        ("/dev/mapper/twin", swap.as_str()),
    ] {
        let (status, message) = vet(guest, &probe, path).await.unwrap_err();
        assert!(status == 6 && message.contains(expected), "{path}, {status}: {message}");
    }

    let script = "cd /mnt && mkdir -p proc sys dev && cp /usr/bin/agent-probe . && for d in proc sys dev; do mount -o bind /$d $d; done";
    guest.shell(script).await;
    let root = "which is on a disk of this host's root file system";
    for (path, below) in [("/dev/loop0", "/dev/dm-0"), ("/dev/loop2", disk.as_str())] {
        let (status, message) =
            vet(guest, &["chroot", "/mnt", "/agent-probe"], path).await.unwrap_err();
        let expected = format!("is over {below}, {root}");
        assert!(status == 6 && message.contains(&expected), "{path}, {status}: {message}");
    }
    let script = "for d in proc sys dev; do umount /mnt/$d; done; umount /mnt; swapoff OTHER;
        losetup -d /dev/loop0; losetup -d /dev/loop2; dmsetup remove --noudevsync twin;
        dmsetup remove --noudevsync made; losetup -d /dev/loop1";
    guest.shell(&script.replace("OTHER", other)).await;
}
