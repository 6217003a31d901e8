//! A bound on the requests that work at a time: each has threads and descriptors of the agent,
//! which has a limited number of them. Further requests wait, in the order in which they came.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};

/// So many requests for a few volumes each work at a time.
const MOST: u32 = 16;
/// So many detaches wait for holders at a time. They do little, for a long time.
const MOST_PATIENT: u32 = 32;
/// A request for more volumes counts as several.
const VOLUMES: usize = 32;
/// A caller that waits longer than any request may take.
const LONGEST: Duration = Duration::from_secs(600);

/// The requests that work.
#[derive(Debug)]
pub(super) struct AtWork {
    usual: Arc<Semaphore>,
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
        let places = |most: u32| Arc::new(Semaphore::new(most as usize));
        AtWork { usual: places(MOST), patient: places(MOST_PATIENT) }
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
        let (places, most, what) = match demand.is_patient {
            true => (&self.patient, MOST_PATIENT, "detaches that wait for holders"),
            false => (&self.usual, MOST, "requests at work"),
        };
        let taken = demand.taken().min(most);
        // No timer where there is no need to wait.
        if let Ok(permit) = places.clone().try_acquire_many_owned(taken) {
            return Ok(Place { _permit: permit });
        }
        let patience = demand.patience(timeout_nano).saturating_sub(began.elapsed());
        let acquired = tokio::time::timeout(patience, places.clone().acquire_many_owned(taken));
        match acquired.await {
            Ok(Ok(permit)) => Ok(Place { _permit: permit }),
            // It is never closed.
            Ok(Err(_)) => Err(Error::Panicked),
            Err(_) => {
                let awaited = format!("the end of earlier ones: at most {most} {what} are served");
                Err(Error::TimedOut { awaited })
            }
        }
    }
}

impl Demand {
    fn taken(self) -> u32 {
        u32::try_from(1 + self.volumes / VOLUMES).unwrap_or(u32::MAX)
    }

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
    async fn a_request_for_many_volumes_counts_as_several() {
        let at_work = AtWork::default();
        let many = Demand { volumes: 256, ..SHORT };
        let place = enter(&at_work, many).await.unwrap();
        enter(&at_work, many).await.unwrap_err();
        drop(place);
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
