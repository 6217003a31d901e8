//! What is not mounted, and why.

use agent_plugin::{
    Error, FileSystemError, Unsupported, api::block_volume::Reason, file_system::Kind,
};

use super::{
    container::start,
    disk::{Disk, MIB, run},
    mount::{How, PATH, alone, mount},
};

#[test]
fn what_is_no_file_system_or_another_one_is_refused() {
    let _alone = alone();
    let container = start("");
    let blank = Disk::blank(16 * MIB);
    let error = mount(&container, &blank, How::default()).unwrap_err();
    assert_eq!(error.reason(), Reason::REASON_NO_FILE_SYSTEM, "{error}");
    let disk = Disk::with(Kind::Ext4);
    let xfs = How { kind: Some(Kind::Xfs), ..How::default() };
    let error = mount(&container, &disk, xfs).unwrap_err();
    assert_eq!(error.reason(), Reason::REASON_FILE_SYSTEM_MISMATCH, "{error}");
    let nouuid = How { options: vec!["nouuid".to_owned()], ..How::default() };
    let error = mount(&container, &disk, nouuid).unwrap_err();
    assert_eq!(error.reason(), Reason::REASON_INVALID_REQUEST, "{error}");
    assert_eq!(container.list("/srv"), ["inside"]);
    assert!(disk.is_free());
}

#[test]
fn the_kernels_reason_reaches_the_error() {
    let _alone = alone();
    let container = start("");
    let disk = Disk::with(Kind::Ext4);
    // Features that no kernel knows (s_feature_incompat).
    std::os::unix::fs::FileExt::write_all_at(disk.image.as_file(), &[0xff; 4], 0x460).unwrap();
    run(&["blockdev", "--flushbufs", &disk.node()]);
    let error = mount(&container, &disk, How::default()).unwrap_err();
    let Error::FileSystem(refused) = &*error else { panic!("{error}") };
    let FileSystemError::Refused { messages, .. } = &**refused else { panic!("{error}") };
    assert!(messages.iter().any(|message| message.starts_with("EXT4-fs (")), "{error}");
}

#[test]
fn something_else_at_the_mount_point_stays() {
    let _alone = alone();
    let extra = "mkdir $root/srv/data; ln -s /etc $root/srv/data/deep";
    let (container, disk) = (start(extra), Disk::with(Kind::Ext4));
    let error = mount(&container, &disk, How::default()).unwrap_err().to_string();
    assert!(error.contains("taken by a symbolic link"), "{error}");
    container.run(&["sh", "-c", "rm /srv/data/deep; mkdir /srv/data/deep"]);
    container.run(&["mount", "-t", "tmpfs", "t", PATH]);
    let error = mount(&container, &disk, How::default()).unwrap_err().to_string();
    assert!(error.contains("taken by a mount"), "{error}");
    assert!(disk.is_free());
}

#[test]
fn a_shared_place_is_refused() {
    let _alone = alone();
    let (container, disk) = (start("mount --make-shared $root/srv"), Disk::with(Kind::Ext4));
    let error = mount(&container, &disk, How::default()).unwrap_err();
    assert!(matches!(&*error, Error::Unsupported(Unsupported::Shared { .. })), "{error}");
    assert!(disk.is_free());
}
