# Block volumes. These lines work in every module of package agent_policy, with Rego v0 and v1 and
# whatever it imports.

default ProbeBlockVolumeRequest := true
default InspectBlockVolumeRequest := true
default DetachBlockVolumeRequest := true
default ResizeBlockVolumeRequest := true
default AttachBlockVolumeRequest := false

AttachBlockVolumeRequest := count_of_allowed == count(input.attachments)

count_of_allowed := count(allowed_block_volumes) + count(allowed_mounts)

# Volumes at /dev/xvd* that only root and the group root can open.
allowed_block_volumes := [volume |
	volume := input.attachments[_]
	startswith(volume.path, "/dev/xvd")
	volume.uid == 0
	volume.gid == 0
	{384, 432}[volume.mode] # 0600, 0660
]

# File systems of volumes, mounted at /data* or below /mnt.
allowed_mounts := [volume |
	volume := input.attachments[_]
	startswith(volume.path, ["/data", "/mnt/"][_])
	volume.mount.options
]
