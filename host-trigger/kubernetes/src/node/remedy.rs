//! What to do about an error of `ecr-runtime` in a cluster, where nobody types its options: the
//! remedy names fields of the resource, the node, or the pod.

/// Remedies that are others than those of a command line, by the reason.
const OF_A_CLUSTER: [(&str, &str); 20] = [
    (
        "qmp_held",
        "Kata's shim holds qmp.sock for the life of the VM: run `ecr-runtime node enable` on the \
         node, which adds a second QMP socket, and make the pod anew",
    ),
    ("qmp_unreachable", "run `ecr-runtime node enable` on the node, and make the pod anew"),
    (
        "no_plugin",
        "the Kata agent of this pod's guest image has no block volume plugin: build one that has \
         it (docs/builders-guide.md), and make the pod anew",
    ),
    (
        "no_mounts",
        "build the guest image with an agent that has a newer plugin (docs/builders-guide.md), or \
         use devicePath in place of mount",
    ),
    (
        "not_kata",
        "set runtimeClassName of the pod to a runtime class of Kata's with QEMU (`kubectl get \
         runtimeclass`); if it is one, name Kata's state directory with --run-dir of the node agent",
    ),
    ("path_taken", "delete this attachment, and create one with another path"),
    (
        "volume_taken",
        "delete the attachment that has the volume: a volume has one container at a time",
    ),
    ("other_options", "delete this attachment, and create one with the options that are wanted"),
    (
        "source_read_only",
        "delete this attachment, and create one with readOnly: true, or make the volume writable",
    ),
    (
        "busy",
        "end its use in the container; or annotate the attachment that is deleted with \
         block-volume.ecr-runtime.dev/force-detach=REASON, and holders get I/O errors",
    ),
    (
        "denied_by_guest",
        "append the rules for block volumes to the policy of the pod's agent (docs/policy.md)",
    ),
    (
        "file_system_mismatch",
        "delete this attachment, and create one with the type in mount.fsType, or without a type",
    ),
    (
        "no_file_system",
        "attach it with devicePath and make one in the container, which destroys what the volume \
         holds",
    ),
    (
        "file_system_refused",
        "attach it with devicePath, and check and repair it in a container (fsck); or give the \
         guest a kernel that has what the file system needs",
    ),
    (
        "timed_out",
        "it is tried again; QEMU or the guest may be stopped or overloaded, or --timeout of the \
         node agent too short",
    ),
    ("owners_incomplete", "it is tried again, and continues where it stopped"),
    ("incomplete", "it is tried again; `ecr-runtime block-volume repair` on the node, if it stays"),
    ("incomplete_volume", "it is tried again, and rolls back what is left first"),
    ("denied", "the node agent has to run as root of the node, privileged, as the manifest has it"),
    (
        "not_audited",
        "let the file or socket of --audit-log of the node agent take records (free space, a \
         reader)",
    ),
];

/// Options of a command line that a remedy may name, and what they are in a cluster.
const OPTIONS: [(&str, &str); 12] = [
    ("--device-path or --mount-path", "devicePath or mount.path"),
    ("--device-path", "devicePath"),
    ("--mount-path", "mount.path"),
    ("--mount-options", "mount.options"),
    ("--fs-group", "mount.fsGroup"),
    ("--fs-type", "mount.fsType"),
    ("--read-only", "readOnly"),
    ("--block-volume", "source"),
    ("--iops", "limits.iops"),
    ("--bps", "limits.bytesPerSecond"),
    ("--run-dir", "--run-dir of the node agent"),
    ("--cri", "--cri of the node agent"),
];

/// The remedy for this reason, where a command line would be told `remedy`.
pub(super) fn remedy(reason: &str, remedy: Option<&str>) -> Option<String> {
    let known = OF_A_CLUSTER.iter().find(|(known, _)| *known == reason);
    known.map(|(_, remedy)| (*remedy).to_owned()).or_else(|| remedy.map(in_a_cluster))
}

/// `text` with the fields of the resource in place of options.
pub(super) fn in_a_cluster(text: &str) -> String {
    let mut text = text.to_owned();
    for (option, field) in OPTIONS {
        text = text.replace(option, field);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_names_fields_and_no_options() {
        let busy = remedy("busy", Some("detach anyway with --force")).unwrap();
        assert!(busy.contains("force-detach"), "{busy}");
        let other = remedy("x", Some("choose another --device-path or --mount-path")).unwrap();
        assert_eq!(other, "choose another devicePath or mount.path");
        assert_eq!(remedy("x", None), None);
        for (reason, remedy) in OF_A_CLUSTER {
            let options = ["--device-path", "--mount-path", "--read-only", "--force", "--qmp"];
            assert!(!options.iter().any(|option| remedy.contains(option)), "{reason}: {remedy}");
        }
    }
}
