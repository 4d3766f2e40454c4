//! How often those without a token may ask, by address: a token bucket each.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::limits;
use crate::model::error::{Code, Error};

/// Addresses after which those that have not asked lately are forgotten, at the least.
const SWEEP: usize = 1_024;

pub struct StrangerRates {
    /// What one request costs, and what may be spent at once. Nanoseconds.
    cost: u64,
    burst: u64,
    began: Instant,
    buckets: Mutex<Buckets>,
}

#[derive(Default)]
struct Buckets {
    /// When all that was spent is there again, by address. Nanoseconds since the node began.
    full_at: HashMap<String, u64>,
    sweep_at: usize,
}

impl StrangerRates {
    /// So many requests a second, and so many at once after a pause.
    pub fn new(per_second: u64, burst: u64) -> Self {
        let cost = 1_000_000_000 / per_second.max(1);
        Self { cost, burst: cost * burst, began: Instant::now(), buckets: Mutex::default() }
    }

    /// One request from the address: 5003 with the time to wait if it is one too many.
    pub fn check(&self, address: &str) -> Result<(), Error> {
        let now = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut buckets = self.buckets.lock();
        let spent_at = buckets.full_at.get(address).copied().unwrap_or(0).max(now);
        let wait = (spent_at + self.cost).saturating_sub(now).saturating_sub(self.burst);
        if wait > 0 {
            return Err(too_many(wait));
        }
        if !buckets.full_at.contains_key(address) && buckets.full_at.len() >= buckets.sweep_at.max(SWEEP) {
            buckets.full_at.retain(|_, full_at| *full_at > now);
            buckets.sweep_at = (buckets.full_at.len() * 2).min(limits::STRANGER_ADDRESSES);
            if buckets.full_at.len() >= limits::STRANGER_ADDRESSES {
                return Err(too_many(self.cost));
            }
        }
        buckets.full_at.insert(address.to_owned(), spent_at + self.cost);
        Ok(())
    }
}

fn too_many(wait_ns: u64) -> Error {
    let mut error = Error::new(Code::Unavailable, "too many requests without a token");
    error.retry_after_ms = Some(wait_ns.div_ceil(1_000_000).max(1));
    error
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_address_asks_so_often_and_another_one_notices_nothing() {
        let rates = StrangerRates::new(4, 3);
        for _ in 0..3 {
            rates.check("a").unwrap();
        }
        let error = rates.check("a").unwrap_err();
        assert_eq!((error.code, error.retry_after_ms), (Code::Unavailable, Some(250)));
        rates.check("b").unwrap();
        tokio::time::advance(Duration::from_millis(250)).await;
        rates.check("a").unwrap();
        assert!(rates.check("a").is_err());
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!((0..3).all(|_| rates.check("a").is_ok()) && rates.check("a").is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_addresses_are_remembered_and_idle_ones_make_room() {
        let rates = StrangerRates::new(1, 1);
        for n in 0..limits::STRANGER_ADDRESSES {
            rates.check(&n.to_string()).unwrap();
        }
        assert_eq!(rates.check("one more").unwrap_err().code, Code::Unavailable);
        assert_eq!(rates.buckets.lock().full_at.len(), limits::STRANGER_ADDRESSES);
        tokio::time::advance(Duration::from_secs(1)).await;
        rates.check("one more").unwrap();
        assert_eq!(rates.buckets.lock().full_at.len(), 1);
    }
}
