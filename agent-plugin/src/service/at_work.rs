//! A bound on the requests that work at a time: each has threads and descriptors of the agent,
//! which has a limited number of them. Further requests wait, in the order in which they came.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};

/// So many requests for a few volumes each work at a time.
const MOST: usize = 16;
/// A request for more volumes than this waits for others of its kind alone, so that a few of them
/// do not keep all others waiting.
const FEW: usize = 32;
/// So many requests for many volumes each work at a time.
const MOST_BULKY: usize = 2;
/// So many detaches wait for holders at a time. They do little, for a long time.
const MOST_PATIENT: usize = 32;
/// A caller that waits longer than any request may take.
const LONGEST: Duration = Duration::from_secs(600);

/// The requests that work.
#[derive(Debug)]
pub(super) struct AtWork {
    usual: Arc<Semaphore>,
    bulky: Arc<Semaphore>,
    patient: Arc<Semaphore>,
}

/// What a request takes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Demand {
    pub(super) volumes: usize,
    /// It waits for holders.
    pub(super) is_patient: bool,
    /// Its own time-out in milliseconds; 0: only that of its call.
    pub(super) timeout_ms: u64,
}

/// The place of a request that works. Dropping it lets the next one begin.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Default for AtWork {
    fn default() -> AtWork {
        let places = |most| Arc::new(Semaphore::new(most));
        AtWork { usual: places(MOST), bulky: places(MOST_BULKY), patient: places(MOST_PATIENT) }
    }
}

impl AtWork {
    /// Waits for a place, for at most the request's own time-out or that of its call.
    ///
    /// # Errors
    /// [`Error::TimedOut`].
    pub(super) async fn enter(
        &self,
        demand: Demand,
        began: Instant,
        timeout_nano: i64,
    ) -> Result<Place> {
        let (places, most, what) = match demand {
            Demand { is_patient: true, .. } => {
                (&self.patient, MOST_PATIENT, "detaches that wait for holders")
            }
            Demand { volumes, .. } if volumes > FEW => {
                (&self.bulky, MOST_BULKY, "requests for many volumes")
            }
            _ => (&self.usual, MOST, "requests at work"),
        };
        // No timer where there is no need to wait.
        if let Ok(permit) = places.clone().try_acquire_owned() {
            return Ok(Place { _permit: permit });
        }
        let patience = demand.patience(timeout_nano).saturating_sub(began.elapsed());
        let acquired = tokio::time::timeout(patience, places.clone().acquire_owned());
        match acquired.await {
            Ok(Ok(permit)) => Ok(Place { _permit: permit }),
            // It is never closed.
            Ok(Err(_)) => Err(Error::Panicked.into()),
            Err(_) => {
                let awaited = format!("the end of earlier ones: at most {most} {what} are served");
                Err(Error::TimedOut { awaited }.into())
            }
        }
    }
}

impl Demand {
    fn patience(self, timeout_nano: i64) -> Duration {
        let of_call = u64::try_from(timeout_nano).ok().filter(|nanos| *nanos > 0);
        let of_call = of_call.map(Duration::from_nanos);
        let own = (self.timeout_ms > 0).then(|| Duration::from_millis(self.timeout_ms));
        of_call.into_iter().chain(own).min().unwrap_or(LONGEST).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Demand = Demand { volumes: 1, is_patient: false, timeout_ms: 1 };
    const PATIENT: Demand = Demand { is_patient: true, ..SHORT };

    async fn enter(at_work: &AtWork, demand: Demand) -> Result<Place> {
        at_work.enter(demand, Instant::now(), 0).await
    }

    #[tokio::test]
    async fn further_requests_wait_for_a_place_for_their_own_time() {
        let at_work = AtWork::default();
        let mut places = Vec::new();
        for _ in 0..MOST {
            places.push(enter(&at_work, SHORT).await.unwrap());
        }
        let error = enter(&at_work, SHORT).await.unwrap_err().to_string();
        assert!(error.ends_with("at most 16 requests at work are served"), "{error}");
        enter(&at_work, PATIENT).await.unwrap();
        places.pop();
        enter(&at_work, SHORT).await.unwrap();
    }

    #[tokio::test]
    async fn detaches_that_wait_for_holders_keep_nobody_else_from_work() {
        let at_work = AtWork::default();
        let mut places = Vec::new();
        for _ in 0..MOST_PATIENT {
            places.push(enter(&at_work, PATIENT).await.unwrap());
        }
        let error = enter(&at_work, PATIENT).await.unwrap_err().to_string();
        assert!(error.ends_with("at most 32 detaches that wait for holders are served"), "{error}");
        enter(&at_work, SHORT).await.unwrap();
    }

    #[tokio::test]
    async fn requests_for_many_volumes_keep_only_their_kind_waiting() {
        let at_work = AtWork::default();
        let many = Demand { volumes: 255, ..SHORT };
        let mut places = Vec::new();
        for _ in 0..MOST_BULKY {
            places.push(enter(&at_work, many).await.unwrap());
        }
        let error = enter(&at_work, many).await.unwrap_err().to_string();
        assert!(error.ends_with("at most 2 requests for many volumes are served"), "{error}");
        enter(&at_work, SHORT).await.unwrap();
        places.pop();
        enter(&at_work, many).await.unwrap();
    }

    #[test]
    fn a_request_waits_for_the_shorter_of_its_time_outs() {
        let millis = |demand: Demand, nanos| demand.patience(nanos).as_millis();
        assert_eq!(millis(SHORT, 5_000_000), 1);
        assert_eq!(millis(Demand { timeout_ms: 10, ..SHORT }, 5_000_000), 5);
        assert_eq!(millis(Demand::default(), 0), 600_000);
        assert_eq!(millis(Demand::default(), -1), 600_000);
    }
}
