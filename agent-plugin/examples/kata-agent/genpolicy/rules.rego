# The stub's rules for generated policies: the lines that those of block volumes are put between.

package agent_policy

default AddSwapRequest := false
default AttachBlockVolumeRequest := false
default DetachBlockVolumeRequest := false
default InspectBlockVolumeRequest := false
default ProbeBlockVolumeRequest := false
default ResizeBlockVolumeRequest := false
default CloseStdinRequest := false
