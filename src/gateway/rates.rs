//! How often one device may ask: a token bucket a device, over all its sessions and REST requests on this node.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::model::error::{Code, Error};

/// Requests after which buckets that are full again are forgotten.
const SWEEP: u32 = 65_536;

/// Requests a second, and how many may come at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub per_second: NonZeroU32,
    pub burst: NonZeroU32,
}

impl Rate {
    pub fn of(per_second: u32, burst: u32) -> Option<Self> {
        Some(Self { per_second: NonZeroU32::new(per_second)?, burst: NonZeroU32::new(burst)? })
    }
}

/// Without a rate everything passes, at no cost.
pub struct Rates {
    limiter: Option<DefaultKeyedRateLimiter<String>>,
    clock: DefaultClock,
    checks: AtomicU32,
}

impl Rates {
    pub fn new(rate: Option<Rate>) -> Self {
        let quota = |r: Rate| Quota::per_second(r.per_second).allow_burst(r.burst);
        let limiter = rate.map(|r| RateLimiter::keyed(quota(r)));
        Self { limiter, clock: DefaultClock::default(), checks: AtomicU32::new(0) }
    }

    /// One request of the device (a token's subject): 5003 with the time to wait if it is one too many.
    pub fn check(&self, device: &String) -> Result<(), Error> {
        let Some(limiter) = &self.limiter else { return Ok(()) };
        if self.checks.fetch_add(1, Ordering::Relaxed) % SWEEP == SWEEP - 1 {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
        limiter.check_key(device).map_err(|not_until| {
            let wait = not_until.wait_time_from(self.clock.now());
            let mut error = Error::new(Code::Unavailable, "too many requests of this device");
            error.retry_after_ms = Some(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1));
            error
        })
    }
}
