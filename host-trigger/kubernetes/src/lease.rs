//! The controller's lease
//! ([Leases](https://kubernetes.io/docs/concepts/architecture/leases/#leader-election)): of several
//! replicas one works. A lease is held for as long as its holder renews it. The clocks of two
//! machines are never compared: a lease has expired if it was not renewed for its whole duration
//! while it was watched here.

use std::time::{Duration, Instant};

use k8s_openapi::{
    api::coordination::v1::{Lease as LeaseObject, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tracing::{info, warn};

use crate::error::Error;

/// The time that a lease is held without being renewed.
const DURATION: Duration = Duration::from_secs(15);
/// How often it is renewed.
const RENEW: Duration = Duration::from_secs(5);
/// The time without a renewal after which the holder stops: before others may take it.
const STOP: Duration = Duration::from_secs(10);
/// How often others look at it.
const RETRY: Duration = Duration::from_secs(2);

/// A lease and who wants it.
#[derive(Debug)]
pub struct Lease {
    api: Api<LeaseObject>,
    name: String,
    identity: String,
    /// The renewal that was seen last, and when.
    seen: Option<(Option<String>, Instant)>,
}

impl Lease {
    /// The lease `name` in `namespace`, for `identity`.
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity: identity.to_owned(),
            seen: None,
        }
    }

    /// Waits until the lease is held.
    pub async fn acquire(&mut self) {
        let mut retries = tokio::time::interval(RETRY);
        loop {
            retries.tick().await;
            match self.try_hold().await {
                Ok(true) => break info!(lease = self.name, identity = self.identity, "held"),
                Ok(false) => {}
                Err(e) => warn!(lease = self.name, error = %e.chain(), "it is tried again"),
            }
        }
    }

    /// Renews the lease for as long as that is possible.
    pub async fn hold(&mut self) -> Error {
        let mut renewals = tokio::time::interval(RENEW);
        let mut renewed = Instant::now();
        loop {
            renewals.tick().await;
            let left = STOP.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left, self.try_hold()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Err(e)) if !left.is_zero() => {
                    warn!(lease = self.name, error = %e.chain(), "it is renewed again");
                }
                _ => return Error::LeaseLost { lease: self.name.clone() },
            }
        }
    }

    /// Gives the lease away, so that another replica need not wait for its end.
    ///
    /// # Errors
    /// The API server does not accept it.
    pub async fn release(&mut self) -> Result<(), Error> {
        if let Some(mut lease) = self.api.get_opt(&self.name).await?
            && let Some(spec) = &mut lease.spec
            && spec.holder_identity.as_deref() == Some(&self.identity)
        {
            spec.holder_identity = None;
            self.api.replace(&self.name, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }

    /// Takes or renews the lease, if it is free or held already.
    async fn try_hold(&mut self) -> Result<bool, Error> {
        let existing = self.api.get_opt(&self.name).await?;
        let now = MicroTime(Timestamp::now());
        let written = match existing {
            None => {
                let lease = self.lease(LeaseSpec::default(), now);
                self.api.create(&PostParams::default(), &lease).await
            }
            Some(lease) => {
                let version = lease.metadata.resource_version.clone();
                let spec = lease.spec.unwrap_or_default();
                if !self.is_free(&spec, version.clone(), Instant::now()) {
                    return Ok(false);
                }
                let mut lease = self.lease(spec, now);
                // If another replica was faster, this is refused.
                lease.metadata.resource_version = version;
                self.api.replace(&self.name, &PostParams::default(), &lease).await
            }
        };
        match written {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(false),
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether the lease may be taken or renewed, at `version`, seen `now`.
    fn is_free(&mut self, spec: &LeaseSpec, version: Option<String>, now: Instant) -> bool {
        match spec.holder_identity.as_deref() {
            None | Some("") => return true,
            Some(holder) if holder == self.identity => return true,
            Some(_) => {}
        }
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            _ => {
                self.seen = Some((version, now));
                now
            }
        };
        let duration = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        now.duration_since(since) >= duration.map_or(DURATION, Duration::from_secs)
    }

    fn lease(&self, spec: LeaseSpec, now: MicroTime) -> LeaseObject {
        let is_own = spec.holder_identity.as_deref() == Some(&self.identity);
        LeaseObject {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
                lease_transitions: match is_own {
                    true => spec.lease_transitions,
                    false => Some(spec.lease_transitions.unwrap_or(0) + 1),
                },
                acquire_time: if is_own { spec.acquire_time } else { Some(now.clone()) },
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        }
    }
}
