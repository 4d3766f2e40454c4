//! Time as the document writes it: ISO 8601 in, `2026-01-02T03:04:05.678Z` out.

use chrono::{DateTime, NaiveDate, NaiveDateTime, SecondsFormat};

/// Unix milliseconds as ISO 8601 in UTC with milliseconds.
pub fn iso(ms: u64) -> String {
    i64::try_from(ms)
        .ok()
        .and_then(DateTime::from_timestamp_millis)
        .unwrap_or(DateTime::UNIX_EPOCH)
        .to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Unix milliseconds of an ISO 8601 time: with `Z` or an offset, or without (then UTC), or a date alone.
/// `None` if it is none of these or lies before 1970.
pub fn parse_iso(text: &str) -> Option<u64> {
    let text = text.trim();
    let ms = DateTime::parse_from_rfc3339(text)
        .or_else(|_| DateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f%z"))
        .or_else(|_| DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f%z"))
        .map(|t| t.timestamp_millis())
        .or_else(|_| {
            NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f")
                .or_else(|_| NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f"))
                .or_else(|_| NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M"))
                .map(|t| t.and_utc().timestamp_millis())
        })
        .or_else(|_| {
            NaiveDate::parse_from_str(text, "%Y-%m-%d")
                .map(|d| d.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_millis())
        })
        .ok()?;
    u64::try_from(ms).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iso_round_trips_and_reads_what_clients_send() {
        assert_eq!(iso(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(parse_iso(&iso(1_795_000_000_123)), Some(1_795_000_000_123));
        for same in [
            "2026-11-22T10:00:00Z",
            "2026-11-22T11:00:00+01:00",
            "2026-11-22T11:00:00+0100",
            "2026-11-22T10:00:00",
            "2026-11-22 10:00:00.000000",
            "2026-11-22T10:00",
        ] {
            assert_eq!(parse_iso(same), Some(1_795_341_600_000), "{same}");
        }
        assert_eq!(parse_iso("2026-11-22"), parse_iso("2026-11-22T00:00:00Z"));
        for bad in ["", "yesterday", "2026-13-01T00:00:00Z", "1969-12-31T00:00:00Z"] {
            assert_eq!(parse_iso(bad), None, "{bad}");
        }
    }
}
