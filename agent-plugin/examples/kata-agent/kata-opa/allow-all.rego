# The stub's policy that allows everything: the lines that those of block volumes are put between.

package agent_policy

default AddSwapRequest := true
default AttachBlockVolumeRequest := true
default DetachBlockVolumeRequest := true
default InspectBlockVolumeRequest := true
default ProbeBlockVolumeRequest := true
default ResizeBlockVolumeRequest := true
default CloseStdinRequest := true
