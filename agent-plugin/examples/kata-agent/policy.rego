# A complete policy for kata-agent 4.1. It allows what runs a pod, and denies what it does not name,
# such as another policy. The rules for block volumes at its end are those of rules.rego.

package agent_policy

# The sandbox.
default CreateSandboxRequest := true
default DestroySandboxRequest := true
default GuestDetailsRequest := true
default OnlineCPUMemRequest := true
default MemHotplugByProbeRequest := true
default ReseedRandomDevRequest := true
default SetGuestDateTimeRequest := true
default CopyFileRequest := true
default PullImageRequest := true
default UpdateEphemeralMountsRequest := true
default RemoveStaleVirtiofsShareMountsRequest := true

# Its network.
default UpdateInterfaceRequest := true
default UpdateRoutesRequest := true
default ListInterfacesRequest := true
default ListRoutesRequest := true
default AddARPNeighborsRequest := true

# Its containers.
default CreateContainerRequest := true
default StartContainerRequest := true
default UpdateContainerRequest := true
default PauseContainerRequest := true
default ResumeContainerRequest := true
default RemoveContainerRequest := true

# Their processes.
default ExecProcessRequest := true
default SignalProcessRequest := true
default WaitProcessRequest := true
default ReadStreamRequest := true
default WriteStreamRequest := true
default CloseStdinRequest := true
default TtyWinResizeRequest := true

# What is measured.
default StatsContainerRequest := true
default GetMetricsRequest := true
default GetOOMEventRequest := true

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
