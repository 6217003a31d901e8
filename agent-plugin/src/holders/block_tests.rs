#[path = "../../tests/loop_device/mod.rs"]
mod loop_device;

use std::time::{Duration, Instant};

use loop_device::LoopDevice;

use super::*;

#[test]
fn a_loop_device_over_a_device_is_found_and_one_over_a_file_is_not() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let below = LoopDevice::over(file.path());
    let above = LoopDevice::over(Path::new(&below.node()));
    let devices = vec![(below.name().to_owned(), below.number())];
    let disk = Disk { serial: "s".into(), path: "/x".into(), devices, mounted: None };
    let mut budget = Budget::until(Instant::now() + Duration::from_secs(60));
    let found = loops(std::slice::from_ref(&disk), &mut budget).unwrap();
    let details: Vec<_> = found.iter().map(|found| found.holder.detail.clone()).collect();
    assert_eq!(details, [above.name()]);
    above.detach();
    let after = loops(&[disk], &mut budget).unwrap();
    assert!(after.is_empty(), "{after:?}");
    let name = below.name().to_owned();
    below.detach();
    assert_eq!(backing(&name), None);
}
