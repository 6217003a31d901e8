package agent_policy

import future.keywords.every
import future.keywords.if

default ProbeBlockVolumeRequest := true
default InspectBlockVolumeRequest := true
default DetachBlockVolumeRequest := true
default ResizeBlockVolumeRequest := true

# Volumes at /dev/xvd* that only root can open.
default AttachBlockVolumeRequest := false

AttachBlockVolumeRequest if {
	every volume in input.attachments {
		startswith(volume.path, "/dev/xvd")
		volume.uid == 0
		volume.mode == 384 # 0600
	}
}
