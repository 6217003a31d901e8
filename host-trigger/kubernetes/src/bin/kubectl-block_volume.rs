//! `kubectl block_volume`: a [plugin](https://kubernetes.io/docs/tasks/extend-kubectl/kubectl-plugins/)
//! of kubectl's, which finds it by its name.

use std::process::ExitCode;

fn main() -> ExitCode {
    block_volume_kubernetes::plugin::run()
}
