//! The containers of a sandbox.

use super::{Sandbox, random_id};
use crate::{Container, ContainerOptions, Error};

impl Sandbox {
    /// Creates and starts a container.
    ///
    /// # Errors
    /// The agent refuses, or does not answer.
    pub async fn try_start_container(
        &self,
        options: &ContainerOptions,
    ) -> Result<Container, Error> {
        let container = self.create_container(options).await?;
        container.start().await?;
        Ok(container)
    }

    /// Creates a container, and does not start it.
    ///
    /// # Errors
    /// The agent refuses, or does not answer.
    pub async fn create_container(&self, options: &ContainerOptions) -> Result<Container, Error> {
        self.create_container_as(&random_id(), options).await
    }

    async fn create_container_as(
        &self,
        id: &str,
        options: &ContainerOptions,
    ) -> Result<Container, Error> {
        let container = Container::create(id, options, &self.agent, &self.guest).await?;
        self.run_dir.add_container(id)?;
        Ok(container)
    }

    /// Removes `container`, and starts a new one with the same ID.
    ///
    /// # Errors
    /// The agent refuses, or does not answer.
    pub async fn restart_container(&self, container: &Container) -> Result<Container, Error> {
        container.remove().await?;
        let options = ContainerOptions::default();
        let new = Container::create(container.id(), &options, &self.agent, &self.guest).await?;
        new.start().await?;
        Ok(new)
    }

    /// Creates and starts a container with the default options.
    ///
    /// # Panics
    /// The agent refuses, or does not answer.
    pub async fn start_container(&self) -> Container {
        self.start_container_with(&ContainerOptions::default()).await
    }

    /// Creates and starts a container with this ID: that of a container of a pod, for example.
    ///
    /// # Panics
    /// The agent refuses, or does not answer.
    pub async fn start_container_as(&self, id: &str) -> Container {
        let options = ContainerOptions::default();
        let started = async {
            let container = self.create_container_as(id, &options).await?;
            container.start().await.map(|()| container)
        };
        started.await.unwrap_or_else(|error| panic!("no container {id}: {}", error.chain()))
    }

    /// Creates and starts a container.
    ///
    /// # Panics
    /// The agent refuses, or does not answer.
    pub async fn start_container_with(&self, options: &ContainerOptions) -> Container {
        self.try_start_container(options)
            .await
            .unwrap_or_else(|error| panic!("no container: {}", error.chain()))
    }
}
