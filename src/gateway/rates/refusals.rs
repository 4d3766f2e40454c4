//! Who was refused for its token: a counter, and lines in the log that a flood cannot fill it with.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::limits;
use crate::metrics;
use crate::model::error::Error;

/// One line an address in such a time, and [`limits::REFUSED_LINES`] in all.
const EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct Refusals(Mutex<RefusalsByAddress>);

#[derive(Debug, Default)]
struct RefusalsByAddress {
    addresses: HashMap<IpAddr, LastRefusal>,
    /// The second that is under way, and its lines.
    second: Option<Instant>,
    lines: u32,
    /// Refusals without a line, of addresses that are not in the table any more.
    others: u64,
}

#[derive(Debug)]
struct LastRefusal {
    at: Instant,
    /// Refusals without a line since then.
    left_out: u64,
}

/// What a line says beside the address and the reason.
#[derive(Debug, PartialEq, Eq)]
struct RefusalLine {
    left_out: u64,
    others: u64,
}

impl Refusals {
    pub fn count(&self, address: Option<IpAddr>, error: &Error) {
        metrics::REFUSED_TOKENS.add(1);
        let Some(address) = address else { return };
        if let Some(RefusalLine { left_out, others }) = self.line(address, Instant::now()) {
            tracing::warn!(%address, reason = %error, left_out, others, "a token was refused");
        }
    }

    fn line(&self, address: IpAddr, now: Instant) -> Option<RefusalLine> {
        let mut table = self.0.lock();
        let table = &mut *table;
        if table.second.is_none_or(|since| now.duration_since(since) >= EVERY) {
            (table.second, table.lines) = (Some(now), 0);
        }
        let known = table.addresses.get_mut(&address);
        let is_due = known.as_ref().is_none_or(|told| now.duration_since(told.at) >= EVERY);
        if !is_due || table.lines >= limits::REFUSED_LINES {
            match known {
                Some(told) => told.left_out += 1,
                None => table.others += 1,
            }
            return None;
        }
        table.lines += 1;
        let left_out = known.map_or(0, |told| told.left_out);
        if table.addresses.len() >= limits::REFUSED_ADDRESSES && !table.addresses.contains_key(&address) {
            let others = &mut table.others;
            table.addresses.retain(|_, told| {
                let stays = now.duration_since(told.at) < EVERY;
                *others += if stays { 0 } else { told.left_out };
                stays
            });
        }
        // What was told within this second are few lines: there is room now.
        table.addresses.insert(address, LastRefusal { at: now, left_out: 0 });
        Some(RefusalLine { left_out, others: std::mem::take(&mut table.others) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_has_a_line_a_second_with_what_was_left_out() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        let line = |left_out, others| Some(RefusalLine { left_out, others });
        assert_eq!(refusals.line(at(1), start), line(0, 0));
        for _ in 0..5 {
            assert_eq!(refusals.line(at(1), start + EVERY / 2), None);
        }
        assert_eq!(refusals.line(at(2), start + EVERY / 2), line(0, 0));
        assert_eq!(refusals.line(at(1), start + EVERY), line(5, 0));
        assert_eq!(refusals.line(at(1), start + EVERY * 3), line(0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn many_addresses_fill_neither_the_log_nor_the_memory() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        let (mut lines, mut left_out) = (0, 0);
        for second in 0..200 {
            for n in 0..100 {
                if let Some(line) = refusals.line(at(second * 1_000 + n), start + EVERY * second) {
                    lines += 1;
                    left_out += line.left_out + line.others;
                }
            }
        }
        let table = refusals.0.lock();
        assert_eq!(lines, 200 * u64::from(limits::REFUSED_LINES));
        assert!(table.addresses.len() <= limits::REFUSED_ADDRESSES);
        assert_eq!(left_out + table.others, 20_000 - lines, "each is counted in some line");
    }
}
