//! How much of a node one token's subject may take up.

use std::num::NonZeroU32;
use std::time::Duration;

use super::Layers;
use crate::limits;
use crate::model::error::Error;

/// So many in a time, and how many at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub count: NonZeroU32,
    pub per: Duration,
    pub burst: NonZeroU32,
}

impl Rate {
    /// `None`, and so no bound, if the count is 0.
    pub fn per_second(count: u32, burst: u32) -> Option<Self> {
        Self::new(count, Duration::from_secs(1), burst)
    }

    /// The same; what comes in a minute may come at once.
    pub fn per_minute(count: u32) -> Option<Self> {
        Self::new(count, Duration::from_secs(60), count)
    }

    fn new(count: u32, per: Duration, burst: u32) -> Option<Self> {
        Some(Self { count: NonZeroU32::new(count)?, per, burst: NonZeroU32::new(burst)? })
    }
}

/// What each subject may ask for; `None`: as much as it likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimits {
    /// Requests and events, and their bytes.
    pub requests: Option<Rate>,
    pub bytes: Option<Rate>,
    /// Bytes of what it reads.
    pub reads: Option<Rate>,
    pub elections: Option<Rate>,
    pub critical: Option<Rate>,
    /// Conflicts and sync errors.
    pub reports: Option<Rate>,
    /// Comings and goings of devices.
    pub presence: Option<Rate>,
    /// Requests of an admin's or a manager's token.
    pub privileged: Option<Rate>,
    /// Sessions and streams at the same time.
    pub sessions: usize,
}

impl Default for RateLimits {
    fn default() -> Self {
        Self {
            requests: Rate::per_second(limits::DEVICE_RATE, limits::DEVICE_BURST),
            bytes: Rate::per_second(limits::DEVICE_BYTES, limits::DEVICE_BYTES_BURST),
            reads: Rate::per_second(limits::DEVICE_READS, limits::DEVICE_READS_BURST),
            elections: Rate::per_minute(limits::ELECTION_RATE),
            critical: Rate::per_minute(limits::CRITICAL_RATE),
            reports: Rate::per_minute(limits::REPORT_RATE),
            presence: Rate::per_minute(limits::PRESENCE_RATE),
            privileged: Rate::per_second(limits::PRIVILEGED_RATE, limits::PRIVILEGED_RATE),
            sessions: limits::SESSIONS_OF_TOKEN,
        }
    }
}

impl RateLimits {
    pub(super) fn from_layers(layers: &Layers) -> Result<Self, Error> {
        let number = |key| layers.number(key).map(|number| u32::try_from(number).unwrap_or(u32::MAX));
        let privileged = number("privileged_rate")?;
        Ok(Self {
            requests: Rate::per_second(number("device_rate")?, number("device_burst")?),
            bytes: Rate::per_second(number("device_bytes")?, number("device_bytes_burst")?),
            reads: Rate::per_second(number("device_read_bytes")?, number("device_read_bytes_burst")?),
            elections: Rate::per_minute(number("election_rate")?),
            critical: Rate::per_minute(number("critical_rate")?),
            reports: Rate::per_minute(number("report_rate")?),
            presence: Rate::per_minute(number("presence_rate")?),
            privileged: Rate::per_second(privileged, privileged),
            sessions: usize::try_from(layers.number("sessions_per_token")?).unwrap_or(usize::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::setting;
    use super::*;

    /// Tests work with what a node has that sets nothing.
    #[test]
    fn the_defaults_are_those_of_the_settings() {
        let default = |key: &str| setting(key).and_then(|s| s.default).unwrap().parse::<u32>().unwrap();
        let allowed = RateLimits::default();
        assert_eq!(allowed.requests, Rate::per_second(default("device_rate"), default("device_burst")));
        assert_eq!(allowed.bytes, Rate::per_second(default("device_bytes"), default("device_bytes_burst")));
        let reads = Rate::per_second(default("device_read_bytes"), default("device_read_bytes_burst"));
        assert_eq!(allowed.reads, reads);
        assert_eq!(allowed.elections, Rate::per_minute(default("election_rate")));
        assert_eq!(allowed.critical, Rate::per_minute(default("critical_rate")));
        assert_eq!(allowed.reports, Rate::per_minute(default("report_rate")));
        assert_eq!(allowed.presence, Rate::per_minute(default("presence_rate")));
        assert_eq!(allowed.privileged, Rate::per_second(default("privileged_rate"), default("privileged_rate")));
        assert_eq!(allowed.sessions, default("sessions_per_token") as usize);
    }
}
