//! Calls of `ecr-runtime` for a sandbox.

use std::path::PathBuf;

use super::Sandbox;
use crate::{Container, EcrRuntime, Plugged, Volume};

impl Sandbox {
    /// Returns a call of `ecr-runtime` as it ships, with this sandbox's run directory.
    ///
    /// # Panics
    /// It was not built.
    pub fn ecr_runtime(&self) -> EcrRuntime {
        let program =
            self.environment.ecr_runtime().unwrap_or_else(|error| panic!("{}", error.chain()));
        self.call_of(program)
    }

    /// Returns a call of `ecr-runtime` with the fault points `faults` (`name=action,…`).
    ///
    /// # Panics
    /// It was not built.
    pub fn ecr_runtime_with_faults(&self, faults: &str) -> EcrRuntime {
        let program = self
            .environment
            .ecr_runtime_with_faults()
            .unwrap_or_else(|error| panic!("{}", error.chain()));
        self.call_of(program).env("ECR_RUNTIME_FAULT", faults)
    }

    fn call_of(&self, program: PathBuf) -> EcrRuntime {
        EcrRuntime::new(
            program,
            self.run_dir(),
            self.vmm_user,
            self.has_own_plugin_port().then(|| self.plugin_url()),
        )
    }

    /// Returns a `hot-plug` command, to be changed or run.
    pub fn hot_plug_command(
        &self,
        container: &Container,
        volumes: &[(&Volume, &str)],
    ) -> EcrRuntime {
        self.ecr_runtime().hot_plug(&self.id, container.id(), volumes)
    }

    /// Hot-plugs `volume` into `container` at `path`.
    ///
    /// # Panics
    /// It fails.
    pub async fn hot_plug(&self, container: &Container, volume: &Volume, path: &str) -> Plugged {
        let finished = self.hot_plug_command(container, &[(volume, path)]).run().await;
        finished.succeeded(&self.guest).remove(0)
    }

    /// Returns a `hot-plug` command that mounts the volumes' file systems, to be changed or run.
    pub fn mount_command(&self, container: &Container, volumes: &[(&Volume, &str)]) -> EcrRuntime {
        self.ecr_runtime().mount(&self.id, container.id(), volumes)
    }

    /// Mounts the file system of `volume` in `container` at `path`.
    ///
    /// # Panics
    /// It fails.
    pub async fn mount(&self, container: &Container, volume: &Volume, path: &str) -> Plugged {
        let finished = self.mount_command(container, &[(volume, path)]).run().await;
        finished.succeeded(&self.guest).remove(0)
    }
}
