//! The table that scripts rely on: each error has its reason and its exit status, and its message
//! contains its cause once.

use rstest::rstest;

use super::*;

fn untrusted_path() -> Untrusted {
    Untrusted::Path { path: "x".into(), why: "y", owner: 1, mode: 0o700 }
}

fn no_descriptor() -> io::Error {
    io::Error::from_raw_os_error(libc::EMFILE)
}

fn io(kind: io::ErrorKind) -> io::Error {
    kind.into()
}

#[rstest]
#[case(Error::Usage { text: "x".into() }, "usage", 2)]
#[case(Error::InvalidId { what: "sandbox", id: "/".into() }, "invalid_id", 2)]
#[case(Error::AmbiguousId { what: "sandbox", prefix: "a".into(), found: vec![] }, "ambiguous_id", 2)]
#[case(Error::SandboxUnknown { container: "c".into() }, "sandbox_needed", 2)]
#[case(Error::SandboxNotNamed, "sandbox_needed", 2)]
#[case(Error::PauseContainer { container: "c".into() }, "pause_container", 2)]
#[case(Error::DevicePath { path: "x".into(), why: "y" }, "invalid_device_path", 2)]
#[case(Error::MountPath { path: "x".into(), why: "y" }, "invalid_mount_path", 2)]
#[case(Error::TwoPaths { volume: "v".into(), device_path: "d".into(), mount_path: "m".into() }, "two_paths", 2)]
#[case(Error::MountOption { option: "dev".into(), rule: "must not be" }, "invalid_mount_option", 2)]
#[case(Error::MountInfo { path: "p".into(), why: "no".into() }, "invalid_mount_info", 2)]
#[case(Error::NoMounts { path: "/data".into() }, "no_mounts", 10)]
#[case(Error::NoFileSystem { path: "/dev/x".into(), fs_type: "xfs".into(), message: "blank".into() },
    "no_file_system", 9)]
#[case(Error::Unpaired { volumes: 1, paths: 2 }, "unpaired", 2)]
#[case(Error::Repeated { what: "the path", value: "x".into() }, "repeated", 2)]
#[case(Error::TooMany { count: 257 }, "too_many", 2)]
#[case(Error::PathAmbiguous { path: "x".into(), found: vec![] }, "ambiguous_path", 2)]
#[case(Error::AuditLog { path: "x".into(), kind: "a FIFO" }, "audit_log", 2)]
#[case(Error::InvalidLimits { why: "x".into() }, "invalid_limits", 2)]
#[case(Error::LimitsConflict { volume: "v".into(), why: "x".into() }, "limits_conflict", 4)]
#[case(Error::WouldShrink { volume: "v".into(), asked: 512, present: 1024 }, "would_shrink", 4)]
#[case(Error::DeviceSize { path: "x".into(), asked: 512, size: 1024 }, "device_size", 4)]
#[case(Error::SourceReplaced { path: "x".into() }, "source_replaced", 6)]
#[case(Error::ImageLimit { path: "x".into(), size: 512, source: QmpError::TimedOut { command: "x".into() } }, "image_limit", 6)]
#[case(Error::IncompleteVolume { volume: "v".into() }, "incomplete_volume", 8)]
#[case(Error::ResizeReadOnly { volume: "v".into() }, "read_only_volume", 10)]
#[case(Error::AgentAddress { address: "x".into() }, "invalid_agent_address", 2)]
#[case(Error::ControllerAmbiguous { found: vec![] }, "ambiguous_controller", 2)]
#[case(Error::ControllerUnknown { name: "x".into(), found: vec![] }, "unknown_controller", 2)]
#[case(Error::NoKataConfiguration { searched: vec![] }, "no_kata_configuration", 3)]
#[case(Error::RuntimeClassUnknown { name: "x".into(), found: vec![] }, "runtime_class_not_found", 3)]
#[case(Error::NoQemuClass { classes: vec![] }, "not_qemu", 10)]
#[case(Error::WrapperUnusable { path: "x".into(), why: "y".into() }, "wrapper_unusable", 10)]
#[case(Error::MixedConfigurations { directory: "x".into(), changes: vec![] }, "mixed_configurations", 10)]
#[case(Error::ConfigurationUnreadable { file: "x".into(), why: "y".into() }, "configuration_unreadable", 10)]
#[case(Error::NoQemuPath { file: "x".into() }, "no_qemu_path", 10)]
#[case(Error::ForeignDropIn { file: "x".into(), why: "y".into() }, "foreign_drop_in", 4)]
#[case(Error::LaterDropIn { file: "x".into() }, "later_drop_in", 4)]
#[case(Error::OtherRecord { record: "x".into(), recorded: "y".into(), directory: "z".into(), path: "p".into() }, "other_record", 4)]
#[case(Error::CriEndpoint { endpoint: "x".into() }, "invalid_cri", 2)]
#[case(Error::CriAmbiguous { found: vec![] }, "ambiguous_cri", 2)]
#[case(Error::NoCri { searched: vec![] }, "no_cri", 14)]
#[case(Error::CriUnreachable { socket: "x".into(), source: io(io::ErrorKind::NotFound) }, "cri_unreachable", 14)]
#[case(Error::CriTimedOut { socket: "x".into(), method: "y" }, "timed_out", 7)]
#[case(Error::NotCri { socket: "x".into(), why: "y".into() }, "not_cri", 10)]
#[case(Error::CriUnimplemented { socket: "x".into(), message: "y".into() }, "cri_disabled", 10)]
#[case(Error::CriRefused { socket: "x".into(), method: "y", code: 2, message: "z".into() }, "cri_refused", 14)]
#[case(Error::CriReply { socket: "x".into(), method: "y", what: "z".into() }, "cri_reply", 1)]
#[case(Error::PodNotFound { pod: "p".into(), elsewhere: vec![] }, "pod_not_found", 3)]
#[case(Error::PodNotReady { pod: "p".into(), sandbox: "s".into() }, "pod_not_ready", 3)]
#[case(Error::PodAmbiguous { pod: "p".into(), found: vec![] }, "ambiguous_pod", 2)]
#[case(Error::NotKata { pod: "p".into(), sandbox: "s".into(), handler: Some("runc".into()), searched: vec![] }, "not_kata", 10)]
#[case(Error::PodContainerNotFound { pod: "p".into(), container: "c".into(), found: vec![] }, "pod_container_not_found", 3)]
#[case(Error::PodContainerNotRunning { pod: "p".into(), container: "c".into(), state: "exited" }, "pod_container_not_running", 3)]
#[case(Error::PodContainerTwice { pod: "p".into(), container: "c".into(), found: vec![] }, "ambiguous_container", 2)]
#[case(Error::PodContainerNotNamed { pod: "p".into(), found: vec![] }, "container_not_named", 2)]
#[case(Error::PodWithoutContainer { pod: "p".into() }, "pod_without_container", 3)]
#[case(Error::PodContainerRestarted { pod: "p".into(), container: "c".into(), id: "x".into(), source: Box::new(Error::NoPlugin) }, "container_restarted", 3)]
#[case(Error::SandboxNotFound { id: "x".into(), searched: vec![] }, "sandbox_not_found", 3)]
#[case(Error::SandboxStarting { sandbox: "s".into() }, "sandbox_starting", 14)]
#[case(Error::ContainerNotFound { id: "x".into(), sandbox: "s".into() }, "container_not_found", 3)]
#[case(Error::SourceNotFound { path: "x".into() }, "source_not_found", 3)]
#[case(Error::VolumeNotFound { asked: "x".into(), sandbox: "s".into() }, "volume_not_found", 3)]
#[case(Error::PathTaken { path: "x".into(), taken_by: "file".into() }, "path_taken", 4)]
#[case(Error::VolumeTaken { volume: "v".into(), container: "c".into(), path: "p".into() }, "volume_taken", 4)]
#[case(Error::OtherOptions { volume: "v".into(), differs: vec![] }, "other_options", 4)]
#[case(Error::PathHoldsVolume { path: "p".into(), container: "c".into(), volume: "v".into() }, "path_taken", 4)]
#[case(Error::OtherContainer { volume: "v".into(), container: "c".into(), asked: "d".into() }, "other_container", 4)]
#[case(Error::ConcurrentRun { volume: "v".into() }, "another_run", 4)]
#[case(Error::SetTaken { volume: "v".into(), set: 1 }, "descriptor_set_taken", 4)]
#[case(Error::AbandonedVolume { volume: "v".into(), container: "c".into(), path: "p".into() }, "abandoned_volume", 4)]
#[case(Error::WholeVolume { volume: "v".into(), found: vec![] }, "whole_volume", 2)]
#[case(Error::SandboxesUnknown { sandboxes: vec![] }, "sandbox_unknown", 15)]
#[case(Error::StateUnknown { volumes: vec![] }, "state_unknown", 15)]
#[case(Error::SourceEmpty { path: "x".into() }, "source_empty", 6)]
#[case(Error::SourceKind { path: "x".into(), kind: "directory" }, "source_kind", 6)]
#[case(Error::SourceMounted { path: "x".into(), chain: Chain::default(), mount_point: "/".into() }, "source_mounted", 6)]
#[case(Error::SourceHeld { path: "x".into(), chain: Chain::default(), holder: "y".into() }, "source_held", 6)]
#[case(Error::SourceStacked { path: "x".into(), chain: Chain::default() }, "source_stacked", 6)]
#[case(Error::SourceIsRoot { path: "x".into(), chain: Chain::default() }, "source_is_root", 6)]
#[case(Error::SourceUnchecked { path: "x".into(), chain: Chain::default(), why: "y".into() }, "source_unchecked", 6)]
#[case(Error::SourceChanged { path: "x".into() }, "source_changed", 6)]
#[case(Error::SourceReadOnly { path: "x".into() }, "source_read_only", 6)]
#[case(Error::SourceUnaligned { path: "x".into(), size: 1, unit: 512 }, "source_unaligned", 6)]
#[case(Error::SourceBlockSize { path: "x".into(), size: 8192 }, "source_block_size", 6)]
#[case(Error::SourceRefused { path: "x".into(), write: true, refusal: Refusal::Immutable }, "source_read_only", 6)]
#[case(Error::SourceRefused { path: "x".into(), write: true, refusal: Refusal::NotRoot }, "denied", 11)]
#[case(Error::SourceFormat { path: "x".into(), format: "qcow2" }, "source_format", 6)]
#[case(Error::ShrinkInUse { volume: "v".into(), asked: 1, holders: vec![] }, "busy", 5)]
#[case(Error::TimedOut { what: "x".into() }, "timed_out", 7)]
#[case(Error::AgentTimedOut { method: "Probe" }, "timed_out", 7)]
#[case(Error::AgentNotResponding { address: "x".into() }, "timed_out", 7)]
#[case(Error::Incomplete { cause: Box::new(Error::NoPlugin), left: vec![] }, "incomplete", 8)]
#[case(Error::VolumeAmbiguous { volume: "v".into(), found: vec![] }, "ambiguous_volume", 2)]
#[case(Error::Unrepaired { left: vec![] }, "incomplete", 8)]
#[case(Error::RecordLost { volume: "v".into() }, "record_lost", 8)]
#[case(Error::InUse { volume: "v".into(), holders: vec![] }, "busy", 5)]
#[case(Error::NoPlugin, "no_plugin", 10)]
#[case(Error::NoMethod { method: "Attach" }, "no_method", 10)]
#[case(Error::ApiLevel { guest: 2 }, "api_level", 12)]
#[case(Error::AgentStatus { method: "Probe", code: "INTERNAL".into(), message: "x".into() }, "agent_status", 1)]
#[case(Error::AgentLost { method: "Probe" }, "agent_lost", 14)]
#[case(Error::AgentUnreachable { address: "x".into(), source: io(io::ErrorKind::NotFound) }, "agent_unreachable", 14)]
#[case(Error::AgentUnknown { why: "x".into() }, "agent_unknown", 14)]
#[case(Error::AgentReply { method: "Attach", what: "x".into() }, "agent_answer", 1)]
#[case(Error::NoQmpSocket { sandbox: "s".into() }, "qmp_unreachable", 14)]
#[case(Error::NotQemu { sandbox: "s".into(), hypervisor: "clh".into() }, "not_qemu", 10)]
#[case(Error::NoController, "no_controller", 10)]
#[case(Error::NoAddress, "no_address", 10)]
#[case(Error::DescriptorLimit { limit: 31, open: 3 }, "descriptor_limit", 11)]
#[case(Error::system("open", "x", io(io::ErrorKind::PermissionDenied)), "denied", 11)]
#[case(Error::system("open", "x", io(io::ErrorKind::NotFound)), "system", 1)]
#[case(
    Error::system("open", "x", io::Error::from_raw_os_error(libc::EMFILE)),
    "descriptor_limit",
    11
)]
#[case(Error::NotAudited { source: no_descriptor() }, "descriptor_limit", 11)]
#[case(Error::AgentUnreachable { address: "x".into(), source: no_descriptor() }, "descriptor_limit", 11)]
#[case(Error::CriUnreachable { socket: "x".into(), source: no_descriptor() }, "descriptor_limit", 11)]
#[case(QmpError::Connect { path: "x".into(), source: no_descriptor() }.into(), "descriptor_limit", 11)]
#[case(
    Error::system("open", "x", io::Error::from_raw_os_error(libc::ENFILE)),
    "descriptor_limit",
    11
)]
#[case(Error::AuditLost { source: no_descriptor() }, "audit_lost", 16)]
#[case(Error::OutputLost { source: no_descriptor() }, "output_lost", 1)]
#[case(Error::NotAudited { source: io(io::ErrorKind::StorageFull) }, "not_audited", 1)]
#[case(Error::AuditLost { source: io(io::ErrorKind::StorageFull) }, "audit_lost", 16)]
#[case(Error::OutputLost { source: io(io::ErrorKind::StorageFull) }, "output_lost", 1)]
#[case(Error::OutputFile { path: "x".into(), source: io(io::ErrorKind::PermissionDenied) }, "output_file", 1)]
#[case(Error::Interrupted { signal: 2, name: "SIGINT" }, "interrupted", 130)]
#[case(Error::Interrupted { signal: 15, name: "SIGTERM" }, "interrupted", 143)]
#[case(Error::FaultPoint { point: "x" }, "fault_point", 1)]
#[case(untrusted_path().into(), "untrusted_path", 11)]
#[case(QmpError::Untrusted(untrusted_path()).into(), "untrusted_path", 11)]
#[case(Untrusted::Server { path: "x".into(), pid: 1, user: 0, expected: "y".into() }.into(), "untrusted_server", 11)]
#[case(QmpError::Held { path: "x".into() }.into(), "qmp_held", 13)]
#[case(QmpError::Silent { path: "x".into() }.into(), "timed_out", 7)]
#[case(QmpError::NotQmp { path: "x".into() }.into(), "not_qemu", 10)]
#[case(QmpError::TimedOut { command: "x".into() }.into(), "timed_out", 7)]
#[case(QmpError::Disconnected { command: "x".into() }.into(), "qmp_lost", 14)]
#[case(QmpError::Connect { path: "x".into(), source: io(io::ErrorKind::ConnectionRefused) }.into(), "qmp_unreachable", 14)]
#[case(QmpError::Connect { path: "x".into(), source: io(io::ErrorKind::PermissionDenied) }.into(), "denied", 11)]
#[case(QmpError::Refused { command: "x".into(), class: "y".into(), description: "z".into() }.into(), "qemu_refused", 1)]
fn each_error_has_its_reason_and_exit_code(
    #[case] error: Error,
    #[case] reason: &str,
    #[case] exit_code: u8,
) {
    let class = error.class();
    assert_eq!((class.reason, class.exit_status.code()), (reason, exit_code));
    let message = error.message();
    assert!(!message.ends_with('.') && !message.is_empty(), "{message}");
}

#[rstest]
#[case(Reason::REASON_UNSPECIFIED, 1)]
#[case(Reason::REASON_INVALID_REQUEST, 1)]
#[case(Reason::REASON_CONTAINER_NOT_FOUND, 3)]
#[case(Reason::REASON_CONTAINER_NOT_RUNNING, 3)]
#[case(Reason::REASON_PATH_TAKEN, 4)]
#[case(Reason::REASON_PARENT_MISSING, 3)]
#[case(Reason::REASON_CONFLICT, 4)]
#[case(Reason::REASON_BUSY, 5)]
#[case(Reason::REASON_TIMED_OUT, 7)]
#[case(Reason::REASON_CANCELLED, 4)]
#[case(Reason::REASON_DENIED, 9)]
#[case(Reason::REASON_IDENTITY_MISMATCH, 9)]
#[case(Reason::REASON_READ_ONLY_FILE_SYSTEM, 9)]
#[case(Reason::REASON_NO_SPACE, 9)]
#[case(Reason::REASON_NO_CONTROLLER, 10)]
#[case(Reason::REASON_UNSUPPORTED, 10)]
#[case(Reason::REASON_SYSTEM, 1)]
#[case(Reason::REASON_FILE_SYSTEM_MISMATCH, 9)]
#[case(Reason::REASON_NO_FILE_SYSTEM, 9)]
#[case(Reason::REASON_FILE_SYSTEM_REFUSED, 9)]
#[case(Reason::REASON_OWNERS_INCOMPLETE, 7)]
fn each_reason_of_the_guest_has_its_exit_code(#[case] reason: Reason, #[case] exit_code: u8) {
    let error = Error::guest(reason, "x");
    assert_eq!(error.class().exit_status.code(), exit_code);
}

#[test]
fn a_message_names_its_cause_once() {
    let error = Error::system("open", "/x", io::Error::from_raw_os_error(libc::EIO));
    assert_eq!(error.message(), "open \"/x\" failed: Input/output error (os error 5)");
    let error = Error::from(QmpError::Connect {
        path: "/q".into(),
        source: io::Error::from_raw_os_error(libc::ECONNREFUSED),
    });
    assert_eq!(
        error.message(),
        "cannot connect to QEMU's socket \"/q\": Connection refused (os error 111)"
    );
}
