//! What one token's subject may ask of this node, over all its sessions, streams and requests (docs/design.md, section
//! 17.3).
//!
//! A device that asks for more than its rate loses nothing: its sessions are read more slowly ([`RateShare::wait`]),
//! and its REST requests are told when to come again ([`RateShare::check`]). Tools of admins and managers speak for
//! many devices: their rate is one of its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use crate::config::{Rate, RateLimits};
use crate::gateway::rates::read_meter::Reader;
use crate::limits;
use crate::model::error::{Code, Error};
use crate::token::{Claims, Class};

pub(super) mod read_meter;
pub(super) mod refusals;
pub(super) mod stranger_rates;

/// Subjects after which those that are idle are forgotten, at the least.
const SWEEP: usize = 1_024;
/// A new session or stream costs as much as so many requests.
const OPEN_COST: u64 = 10;

/// A token bucket that may be overdrawn: what exceeds it is waited for afterwards. Times are nanoseconds since the node
/// began.
struct Bucket {
    /// What one costs, and what may be spent at once. Nanoseconds; 0: nothing costs anything.
    cost: f64,
    burst: u64,
    /// When all that was spent is there again.
    full_at: AtomicU64,
}

impl Bucket {
    fn new(rate: Option<Rate>, times: u32) -> Self {
        let cost = rate.map_or(0.0, |r| r.per.as_nanos() as f64 / f64::from(r.count.get()) / f64::from(times));
        let burst = rate.map_or(0, |r| (cost * f64::from(r.burst.get()) * f64::from(times)) as u64);
        Self { cost, burst, full_at: AtomicU64::new(0) }
    }

    fn spend(&self, count: u64, now: u64) {
        if self.cost > 0.0 {
            let cost = (self.cost * count as f64) as u64;
            let add = |full_at: u64| Some(full_at.max(now).saturating_add(cost));
            let _ = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        }
    }

    /// How long until one more may come.
    fn wait(&self, now: u64) -> u64 {
        // The last one that the burst allows still comes at once.
        let free = self.burst.saturating_sub(self.cost as u64);
        self.full_at.load(Ordering::Relaxed).saturating_sub(now).saturating_sub(free)
    }

    fn is_full(&self, now: u64) -> bool {
        self.full_at.load(Ordering::Relaxed) <= now
    }
}

/// What a session's event is counted as, beside a request and its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateKind {
    Critical,
    /// A conflict or a sync error.
    Report,
    /// A device that comes or goes.
    Presence,
}

/// What one subject has used of what it may.
pub struct RateShare {
    began: Instant,
    requests: Bucket,
    bytes: Bucket,
    /// Bytes of answers, of syncs and of what devices missed.
    reads: Bucket,
    elections: Bucket,
    critical: Bucket,
    reports: Bucket,
    presence: Bucket,
    /// Its sessions and streams here.
    open: AtomicUsize,
    most_open: usize,
    privileged: bool,
    /// Requests over REST that are being answered, and those that wait for that.
    answering: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// A session or a stream of a subject; it ends with this.
pub struct OpenSession(Arc<RateShare>);

impl Drop for OpenSession {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl RateShare {
    fn new(allowed: &RateLimits, privileged: bool, most_open: usize, began: Instant) -> Self {
        let times = if privileged { limits::PRIVILEGED_TIMES } else { 1 };
        let answering = if privileged { limits::PRIVILEGED_REQUESTS } else { limits::REQUESTS_OF_TOKEN };
        Self {
            began,
            requests: Bucket::new(if privileged { allowed.privileged } else { allowed.requests }, 1),
            bytes: Bucket::new(allowed.bytes, times),
            reads: Bucket::new(allowed.reads, times),
            elections: Bucket::new(allowed.elections, times),
            critical: Bucket::new(allowed.critical, times),
            reports: Bucket::new(allowed.reports, times),
            presence: Bucket::new(allowed.presence, times),
            open: AtomicUsize::new(0),
            most_open,
            privileged,
            answering: Arc::new(Semaphore::new(answering)),
            waiting: AtomicUsize::new(0),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Counts something that a session heard. What is too much is made up for by [`RateShare::wait`].
    pub fn heard(&self, bytes: usize) {
        let now = self.now();
        self.requests.spend(1, now);
        self.bytes.spend(bytes as u64, now);
    }

    /// Counts it as this as well, in the same way.
    pub fn heard_as(&self, kind: RateKind) {
        let bucket = match kind {
            RateKind::Critical => &self.critical,
            RateKind::Report => &self.reports,
            RateKind::Presence => &self.presence,
        };
        bucket.spend(1, self.now());
    }

    /// How long its sessions are not to be read.
    pub fn wait(&self) -> Option<Duration> {
        let now = self.now();
        let buckets = [&self.requests, &self.bytes, &self.critical, &self.reports, &self.presence];
        let wait = buckets.map(|bucket| bucket.wait(now)).into_iter().max().unwrap_or(0);
        (wait > 0).then(|| Duration::from_nanos(wait))
    }

    /// Counts what is sent because it was asked for. It is never cut short: what is too much is made up for by
    /// [`RateShare::may_read`] and [`RateShare::read_wait`].
    pub fn read(&self, bytes: u64) {
        self.reads.spend(bytes, self.now());
    }

    /// Something more may be asked for: 5003 with the time to wait if too much was read. Writes go on.
    pub fn may_read(&self) -> Result<(), Error> {
        match self.reads.wait(self.now()) {
            0 => Ok(()),
            wait => Err(too_many("this device has read too much", wait)),
        }
    }

    /// How long what its devices missed has to wait.
    pub fn read_wait(&self) -> Option<Duration> {
        let wait = self.reads.wait(self.now());
        (wait > 0).then(|| Duration::from_nanos(wait))
    }

    /// One election more: 5003 with the time to wait if it is one too many.
    pub fn election(&self) -> Result<(), Error> {
        let now = self.now();
        match self.elections.wait(now) {
            0 => self.elections.spend(1, now),
            wait => return Err(too_many("too many elections were asked for with this device's tokens", wait)),
        }
        Ok(())
    }

    /// A request over REST, before its body is read: 5003 with the time to wait if it is one too many.
    fn check(&self, bytes: u64) -> Result<(), Error> {
        let now = self.now();
        match self.requests.wait(now).max(self.bytes.wait(now)) {
            0 => {
                self.requests.spend(1, now);
                self.bytes.spend(bytes, now);
                Ok(())
            }
            wait => Err(too_many("too many requests of this device", wait)),
        }
    }

    /// A session or a stream begins: 5003 if there are too many of them, or if they come too fast.
    pub fn open(self: &Arc<Self>) -> Result<OpenSession, Error> {
        let now = self.now();
        match self.requests.wait(now) {
            0 => self.requests.spend(OPEN_COST, now),
            wait => return Err(too_many("too many requests of this device", wait)),
        }
        let one_more = |open: usize| (open < self.most_open).then_some(open + 1);
        if self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_err() {
            let why =
                format!("this device has {} sessions and streams on this node: no more are taken", self.most_open);
            let mut error = Error::new(Code::Unavailable, why);
            // Spread out, so that those refused together do not come back together.
            error.retry_after_ms = Some(rand::random_range(1_000..5_000));
            return Err(error);
        }
        Ok(OpenSession(self.clone()))
    }

    /// How many requests one of its sessions may have unanswered: all of them together have a bound, too.
    pub fn in_flight(&self) -> usize {
        if self.privileged {
            return limits::SESSION_INFLIGHT;
        }
        let sessions = self.open.load(Ordering::Relaxed).max(1);
        (limits::TOKEN_INFLIGHT / sessions).clamp(limits::TOKEN_INFLIGHT_LEAST, limits::SESSION_INFLIGHT)
    }

    /// A request over REST waits for its turn, if many are being answered.
    async fn turn(&self) -> Result<OwnedSemaphorePermit, Error> {
        if let Ok(permit) = self.answering.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let busy = || too_many("too many requests of this device are waiting", limits::REQUEST_TURN.as_nanos() as u64);
        let _waiting = WaitingRequest::one_more(&self.waiting).ok_or_else(busy)?;
        match timeout(limits::REQUEST_TURN, self.answering.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(busy()),
        }
    }

    /// Nobody is served, and nothing has to be remembered.
    fn is_idle(&self) -> bool {
        let now = self.now();
        let rare = [&self.elections, &self.critical, &self.reports, &self.presence];
        let mut buckets = [&self.requests, &self.bytes, &self.reads].into_iter().chain(rare);
        buckets.all(|bucket| bucket.is_full(now))
    }
}

struct WaitingRequest<'a>(&'a AtomicUsize);

impl<'a> WaitingRequest<'a> {
    fn one_more(waiting: &'a AtomicUsize) -> Option<Self> {
        let more = |n: usize| (n < limits::REQUESTS_WAITING).then_some(n + 1);
        waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self(waiting))
    }
}

impl Drop for WaitingRequest<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn too_many(why: &str, wait_ns: u64) -> Error {
    let mut error = Error::new(Code::Unavailable, why);
    error.retry_after_ms = Some(wait_ns.div_ceil(1_000_000).max(1));
    error
}

#[derive(Default)]
struct Shares {
    /// Of devices, of managers and of admins.
    of: [HashMap<String, Arc<RateShare>>; 3],
    sweep_at: usize,
}

/// The shares of all subjects that were here lately.
pub struct Rates {
    allowed: RateLimits,
    /// Sessions of the node.
    sessions: usize,
    began: Instant,
    shares: Mutex<Shares>,
}

impl Rates {
    pub fn new(allowed: RateLimits, sessions: usize) -> Self {
        let shares = Mutex::new(Shares { sweep_at: SWEEP, ..Shares::default() });
        Self { allowed, sessions, began: Instant::now(), shares }
    }

    pub fn of(&self, claims: &Claims) -> Arc<RateShare> {
        // A tool of an admin may speak for a whole shop. A manager's has more than a device, and leaves room for others.
        let (of, most_open) = match claims.class {
            // The node's own bound comes first; streams count as well.
            Class::Admin => (2, self.sessions.saturating_mul(2)),
            Class::Manager => (1, (self.sessions / 8).max(self.allowed.sessions)),
            _ => (0, self.allowed.sessions),
        };
        let mut shares = self.shares.lock();
        if let Some(share) = shares.of[of].get(&claims.sub) {
            return share.clone();
        }
        if shares.of.iter().map(HashMap::len).sum::<usize>() >= shares.sweep_at {
            for of in &mut shares.of {
                of.retain(|_, share| Arc::strong_count(share) > 1 || !share.is_idle());
                of.shrink_to_fit();
            }
            shares.sweep_at = (shares.of.iter().map(HashMap::len).sum::<usize>() * 2).max(SWEEP);
        }
        let share = Arc::new(RateShare::new(&self.allowed, claims.class.is_privileged(), most_open, self.began));
        shares.of[of].insert(claims.sub.clone(), share.clone());
        share
    }

    /// One request over REST, with so many bytes to come: 5003 with the time to wait if it is one too many. A `reader`'s
    /// answer is counted on the same share. What it gives back is held until the request is answered.
    pub async fn request(&self, claims: &Claims, bytes: u64, reader: Option<&Reader>) -> Result<RequestTurn, Error> {
        let share = self.of(claims);
        if let Some(reader) = reader {
            share.may_read()?;
            reader.is(share.clone());
        }
        share.check(bytes)?;
        share.turn().await.map(|permit| RequestTurn { _permit: permit })
    }
}

/// The turn of a request: its subject's others may be waiting for its end.
pub struct RequestTurn {
    _permit: OwnedSemaphorePermit,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_manager_have_a_rate_too() {
        let allowed = RateLimits { bytes: Rate::per_second(1_000, 10_000), ..RateLimits::default() };
        let burst = 10_000 * limits::PRIVILEGED_TIMES as usize;
        for (privileged, burst) in [(false, 10_000), (true, burst)] {
            let share = RateShare::new(&allowed, privileged, 1, Instant::now());
            share.heard(burst - 1_000);
            assert_eq!(share.wait(), None, "privileged: {privileged}");
            // As long as ten bursts take, but for what came back meanwhile.
            share.heard(10 * burst);
            assert!(share.wait() > Some(Duration::from_secs(50)), "privileged: {privileged}, {:?}", share.wait());
            let error = share.check(1).unwrap_err();
            assert!(error.code == Code::Unavailable && error.retry_after_ms > Some(50_000), "{error:?}");
        }
    }
}
