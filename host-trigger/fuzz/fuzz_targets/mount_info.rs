//! `mountInfo.json`, as CSI drivers write it for Kata. What is accepted is a mount that the command
//! line could have requested, and is read the same when it is written again.

#![no_main]

use block_volume_api::{FILE_SYSTEMS, check_mount_option};
use host_trigger::fuzz;
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|text: &[u8]| {
    let (device, mount, read_only) = match fuzz::mount_info(text) {
        Ok(requested) => requested,
        Err(why) => {
            assert!(!why.is_empty());
            assert!(!fuzz::sanitize(&why).contains(char::is_control), "{why:?}");
            return;
        }
    };
    assert!(device.is_absolute(), "{device:?}");
    let fs_type = mount.fs_type.as_str();
    assert!(fs_type.is_empty() || FILE_SYSTEMS.contains(&fs_type), "{fs_type:?}");
    let known = (!fs_type.is_empty()).then_some(fs_type);
    assert!(mount.options.len() <= 32, "{:?}", mount.options);
    for option in &mount.options {
        check_mount_option(known, option).expect("the guest takes it");
        assert!(!matches!(option.as_str(), "ro" | "rw" | "defaults"), "{option}");
    }
    let mut metadata = json!({});
    if let Some(group) = mount.fs_group {
        assert!(group.gid < u32::MAX && !read_only, "{group}");
        metadata = json!({
            "fsGroup": group.gid.to_string(), "fsGroupChangePolicy": format!("{:?}", group.change),
        });
    }
    let access = if read_only { "ro" } else { "rw" };
    let options: Vec<&str> =
        mount.options.iter().map(String::as_str).chain(["defaults", access]).collect();
    let again = json!({
        "volume-type": "block", "device": device, "fstype": fs_type, "options": options,
        "metadata": metadata,
    });
    let again = fuzz::mount_info(again.to_string().as_bytes());
    assert_eq!(again.as_ref(), Ok(&(device, mount, read_only)));
});
