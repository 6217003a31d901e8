# Block volumes. These lines work in every module of package agent_policy, with Rego v0 and v1 and
# whatever it imports.

default ProbeBlockVolumeRequest := true
default InspectBlockVolumeRequest := true
default DetachBlockVolumeRequest := true
default ResizeBlockVolumeRequest := true
default AttachBlockVolumeRequest := false

AttachBlockVolumeRequest := count(allowed_block_volumes) == count(input.attachments)

# Volumes at /dev/xvd* that only root and the group root can open.
allowed_block_volumes := [volume |
	volume := input.attachments[_]
	startswith(volume.path, "/dev/xvd")
	volume.uid == 0
	volume.gid == 0
	{384, 432}[volume.mode] # 0600, 0660
]
