//! What a run gave: counts, latencies, the longest silence.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

/// The greatest latency that is told apart, microseconds: ten minutes.
const HIGHEST: u64 = 600_000_000;

/// Filled by all clients of a run.
pub(super) struct Stats {
    latencies: Histogram<u64>,
    pub done: u64,
    pub errors: u64,
    pub last_error: Option<String>,
    last_at: Option<Instant>,
    longest_gap: Duration,
}

impl Stats {
    pub(super) fn new() -> Self {
        // Three digits: a latency is right to a thousandth. These bounds are always valid.
        let latencies = Histogram::new_with_max(HIGHEST, 3).unwrap_or_else(|_| unreachable!("the bounds are valid"));
        Self { latencies, done: 0, errors: 0, last_error: None, last_at: None, longest_gap: Duration::ZERO }
    }

    /// An answer that came at `at`, after `latency`.
    pub(super) fn record(&mut self, at: Instant, latency: Duration) {
        self.done += 1;
        let micros = u64::try_from(latency.as_micros()).unwrap_or(HIGHEST);
        self.latencies.saturating_record(micros);
        if let Some(last) = self.last_at {
            self.longest_gap = self.longest_gap.max(at.saturating_duration_since(last));
        }
        self.last_at = Some(at);
    }

    pub(super) fn error(&mut self, why: String) {
        self.errors += 1;
        self.last_error = Some(why);
    }

    /// The figures of a run of this many measured seconds.
    pub(super) fn report(&self, bench: &'static str, clients: u32, seconds: f64) -> BenchLine {
        let at = |q| self.latencies.value_at_quantile(q) as f64 / 1_000.0;
        BenchLine {
            bench,
            clients,
            seconds,
            done: self.done,
            errors: self.errors,
            mean_ms: self.latencies.mean() / 1_000.0,
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: if self.done == 0 { 0.0 } else { self.latencies.max() as f64 / 1_000.0 },
            longest_gap_ms: self.longest_gap.as_secs_f64() * 1_000.0,
            extra: Map::new(),
        }
    }
}

/// One line of the table.
#[derive(Clone, Debug)]
pub(super) struct BenchLine {
    bench: &'static str,
    clients: u32,
    seconds: f64,
    done: u64,
    errors: u64,
    mean_ms: f64,
    p50_ms: f64,
    p90_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
    max_ms: f64,
    /// Between two answers to any of the clients.
    longest_gap_ms: f64,
    extra: Map<String, Value>,
}

impl BenchLine {
    /// Adds a figure that only this kind of load has.
    pub(super) fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(key.to_owned(), value.into());
        self
    }

    pub(super) fn per_second(&self) -> f64 {
        self.done as f64 / self.seconds
    }

    pub(super) fn json(&self) -> Value {
        let mut value = json!({
            "bench": self.bench, "clients": self.clients, "seconds": self.seconds, "done": self.done,
            "errors": self.errors, "per_second": self.per_second(), "mean_ms": self.mean_ms, "p50_ms": self.p50_ms,
            "p90_ms": self.p90_ms, "p99_ms": self.p99_ms, "p999_ms": self.p999_ms, "max_ms": self.max_ms,
            "longest_gap_ms": self.longest_gap_ms,
        });
        if let Some(fields) = value.as_object_mut() {
            fields.extend(self.extra.clone());
        }
        value
    }

    pub(super) fn print_header() {
        say!(
            "{:<7} {:>8} {:>11} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>7}",
            "bench",
            "clients",
            "per second",
            "p50 ms",
            "p90 ms",
            "p99 ms",
            "p99.9 ms",
            "max ms",
            "gap ms",
            "errors"
        );
    }

    pub(super) fn print(&self) {
        let extra: String = self.extra.iter().map(|(key, value)| format!("  {key}={value}")).collect();
        say!(
            "{:<7} {:>8} {:>11.0} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>9.1} {:>7}{extra}",
            self.bench,
            self.clients,
            self.per_second(),
            self.p50_ms,
            self.p90_ms,
            self.p99_ms,
            self.p999_ms,
            self.max_ms,
            self.longest_gap_ms,
            self.errors
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_what_was_recorded() {
        let (mut stats, start) = (Stats::new(), Instant::now());
        for ms in 1..=100 {
            stats.record(start + Duration::from_millis(ms), Duration::from_millis(ms));
        }
        stats.record(start + Duration::from_millis(350), Duration::from_secs(4_000));
        stats.error("no".into());
        let report = stats.report("write", 7, 2.0);
        assert!((report.p50_ms - 51.0).abs() < 0.1 && (report.p99_ms - 100.0).abs() < 0.2);
        assert_eq!((report.per_second(), report.longest_gap_ms, report.errors), (50.5, 250.0, 1));
        assert!(report.max_ms >= 600_000.0, "what is beyond the range counts as the greatest");
        assert_eq!(report.with("a", 1).json()["a"], 1);
    }
}
