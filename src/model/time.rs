//! Time as the document writes it: ISO 8601 in, `2026-01-02T03:04:05.678Z` out.

use std::fmt;

use chrono::{DateTime, SecondsFormat};

use crate::ids::UnixMs;

const SECOND: i64 = 1_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
/// The last time that is written with a year of four digits.
const LAST: i64 = 253_402_300_799_999;

/// A moment as ISO 8601 in UTC with milliseconds.
pub fn iso(at: UnixMs) -> String {
    i64::try_from(at.get())
        .ok()
        .and_then(DateTime::from_timestamp_millis)
        .unwrap_or(DateTime::UNIX_EPOCH)
        .to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// The moment of an ISO 8601 time; one without an offset is taken as UTC. See [`IsoTime::parse`].
pub fn parse_iso(text: &str) -> Option<UnixMs> {
    IsoTime::parse(text).map(|time| time.unix_ms())
}

/// An ISO 8601 time as its writer meant it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IsoTime {
    /// Unix milliseconds; of a time without an offset: as if it were UTC. Not bounded yet.
    pub ms: i64,
    /// It came without an offset: it is the writer's local time, wherever that is.
    pub is_local: bool,
}

impl IsoTime {
    /// Reads the extended and the basic format: calendar, ordinal and week dates; years of four digits, or of up to
    /// six with a sign; hours, minutes and seconds, the last of them with a fraction; `24:00`; a leap second; `Z`,
    /// `+hh`, `+hhmm` or `+hh:mm`, or no offset. A space may stand for `T`. A date alone is its first moment.
    /// `None` if it is anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim().replace('\u{2212}', "-");
        if !text.is_ascii() {
            return None;
        }
        let Some(at) = text.find(['T', 't', ' ']) else {
            return Some(Self { ms: days(&text)?.checked_mul(DAY)?, is_local: true });
        };
        let (date, rest) = (&text[..at], &text[at + 1..]);
        let (clock, offset) = match rest.find(['Z', 'z', '+', '-']) {
            None => (rest, None),
            Some(at) => (rest[..at].strip_suffix(' ').unwrap_or(&rest[..at]), Some(offset_ms(&rest[at..])?)),
        };
        let ms = days(date)?.checked_mul(DAY)?.checked_add(clock_ms(clock)?)?;
        Some(Self { ms: ms.checked_sub(offset.unwrap_or(0))?, is_local: offset.is_none() })
    }

    /// A time before 1970 counts as 0, one after the year 9999 as its end.
    pub fn unix_ms(self) -> UnixMs {
        UnixMs(self.ms.clamp(0, LAST) as u64)
    }
}

impl fmt::Display for IsoTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = iso(self.unix_ms());
        f.write_str(if self.is_local { text.trim_end_matches('Z') } else { &text })
    }
}

/// The number that these digits are, if there are as many.
fn digits(text: &str, count: usize) -> Option<i64> {
    (text.len() == count && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

/// Days from 1970-01-01 to a date.
fn days(date: &str) -> Option<i64> {
    let (sign, unsigned) = match date.as_bytes().first()? {
        b'+' => (1, &date[1..]),
        b'-' => (-1, &date[1..]),
        _ => (0, date),
    };
    let year_digits = match unsigned.find('-') {
        Some(at) => at,
        // Basic format: with a sign, a year of six digits.
        None if sign != 0 => 6,
        None => 4,
    };
    if (sign == 0 && year_digits != 4) || !(4..=6).contains(&year_digits) {
        return None;
    }
    let year = digits(unsigned.get(..year_digits)?, year_digits)? * if sign < 0 { -1 } else { 1 };
    let rest = &unsigned[year_digits..];
    let (rest, extended) = rest.strip_prefix('-').map_or((rest, false), |rest| (rest, true));
    let new_year = days_before_year(year);
    if let Some(week) = rest.strip_prefix('W') {
        let (week, day) = if extended { week.split_once('-')? } else { (week.get(..2)?, week.get(2..)?) };
        let (week, day) = (digits(week, 2)?, digits(day, 1)?);
        // The first week is the one with January 4; weeks begin on Mondays, as 1970-01-05 was.
        let fourth = new_year + 3;
        let first_monday = fourth - (fourth - 4).rem_euclid(7);
        let monday = first_monday + (week - 1) * 7;
        let of_this_year = (1..=52).contains(&week) || (week == 53 && monday + 3 < days_before_year(year + 1));
        return (of_this_year && (1..=7).contains(&day)).then_some(monday + day - 1);
    }
    let leap = days_before_year(year + 1) - new_year == 366;
    if let Some(day) = digits(rest, 3) {
        return (1..=365 + i64::from(leap)).contains(&day).then_some(new_year + day - 1);
    }
    let (month, day) = if extended { rest.split_once('-')? } else { (rest.get(..2)?, rest.get(2..)?) };
    let (month, day) = (digits(month, 2)?, digits(day, 2)?);
    let lengths = [31, 28 + i64::from(leap), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let before = usize::try_from(month - 1).ok()?;
    let length = lengths.get(before)?;
    (1..=*length).contains(&day).then(|| new_year + lengths[..before].iter().sum::<i64>() + day - 1)
}

/// Days from 1970-01-01 to January 1 of a year.
fn days_before_year(year: i64) -> i64 {
    let before = year - 1;
    before * 365 + before.div_euclid(4) - before.div_euclid(100) + before.div_euclid(400) - 719_162
}

/// Milliseconds from the beginning of the day.
fn clock_ms(clock: &str) -> Option<i64> {
    let (whole, fraction) = match clock.split_once(['.', ',']) {
        None => (clock, 0),
        Some((whole, fraction)) => {
            // Nanoseconds of the unit; finer digits don't count.
            let known = digits(fraction.get(..9).unwrap_or(fraction), fraction.len().min(9))?;
            if !fraction.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            (whole, known * 10_i64.pow(9 - fraction.len().min(9) as u32))
        }
    };
    let parts: Vec<&str> = if whole.contains(':') {
        whole.split(':').collect()
    } else {
        (0..whole.len()).step_by(2).map(|at| whole.get(at..at + 2)).collect::<Option<_>>()?
    };
    let number = |at: usize| parts.get(at).map_or(Some(0), |part| digits(part, 2));
    let (hour, minute, second) = (number(0)?, number(1)?, number(2)?);
    let unit = match parts.len() {
        1 => HOUR,
        2 => MINUTE,
        3 => SECOND,
        _ => return None,
    };
    let ms = hour * HOUR + minute * MINUTE + second * SECOND + unit * fraction / 1_000_000_000;
    // A leap second is the one after it; the day's end is the beginning of the next.
    let is_one = (hour <= 23 && minute <= 59 && second <= 60) || ms == DAY;
    is_one.then_some(ms)
}

/// `Z`, `+hh`, `+hhmm` or `+hh:mm`, as milliseconds east of Greenwich.
fn offset_ms(offset: &str) -> Option<i64> {
    if offset.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let sign = if offset.starts_with('-') { -1 } else { 1 };
    let offset = &offset[1..];
    let (hours, minutes) = match offset.len() {
        2 => (offset, "00"),
        4 => offset.split_at(2),
        _ => offset.split_once(':')?,
    };
    let (hours, minutes) = (digits(hours, 2)?, digits(minutes, 2)?);
    (hours <= 23 && minutes <= 59).then_some(sign * (hours * HOUR + minutes * MINUTE))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn iso_round_trips_and_reads_what_clients_send() {
        assert_eq!(iso(UnixMs(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(parse_iso(&iso(UnixMs(1_795_000_000_123))), Some(UnixMs(1_795_000_000_123)));
        for same in [
            "2026-11-22T10:00:00Z",
            "2026-11-22t10:00:00z",
            "2026-11-22T11:00:00+01:00",
            "2026-11-22T11:00:00+0100",
            "2026-11-22T11:00:00+01",
            "2026-11-22T15:30:00+0530",
            "2026-11-22T05:00:00\u{2212}05:00",
            "2026-11-22 11:00:00 +0100",
            "20261122T100000Z",
            "20261122T1000Z",
            "20261122T10Z",
            "2026-11-22T10Z",
            "2026-11-22T09:59:60Z",
            "2026-11-22T10:00:00,000Z",
            "2026-11-22T10:00:00.00000000000000000000Z",
            "+002026-11-22T10:00:00Z",
            "+0020261122T100000Z",
            "2026-326T10:00:00Z",
            "2026326T100000Z",
            "2026-W47-7T10:00:00Z",
            "2026W477T100000Z",
            "2026-11-22T10:00:00",
            "2026-11-22 10:00:00.000000",
            "2026-11-22T10:00",
            "2026-11-21T24:00-10:00",
        ] {
            assert_eq!(parse_iso(same), Some(UnixMs(1_795_341_600_000)), "{same}");
        }
        for (text, at) in [
            ("2026-11-22T24:00:00Z", "2026-11-23T00:00:00.000Z"),
            ("2026-11-22T10:00:00,5Z", "2026-11-22T10:00:00.500Z"),
            ("2026-11-22T10:00:00.123456789123+05:30", "2026-11-22T04:30:00.123Z"),
            ("2026-11-22T10:30.5Z", "2026-11-22T10:30:30.000Z"),
            ("2026-11-22T10,25Z", "2026-11-22T10:15:00.000Z"),
            ("2026-12-31T23:59:60Z", "2027-01-01T00:00:00.000Z"),
            ("2020-W53-7T00:00Z", "2021-01-03T00:00:00.000Z"),
            ("2024-02-29T00:00Z", "2024-02-29T00:00:00.000Z"),
            ("1969-12-31T23:59:59Z", "1970-01-01T00:00:00.000Z"),
            ("1970-01-01T00:30:00+01:00", "1970-01-01T00:00:00.000Z"),
            ("0000-01-01T00:00:00Z", "1970-01-01T00:00:00.000Z"),
            ("-000044-03-15T12:00:00Z", "1970-01-01T00:00:00.000Z"),
            ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59.000Z"),
            ("+033658-09-27T01:46:40Z", "9999-12-31T23:59:59.999Z"),
            ("+999999-12-31T23:59:59Z", "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(parse_iso(text).map(iso).as_deref(), Some(at), "{text}");
        }
        assert_eq!(parse_iso("2026-11-22"), parse_iso("2026-11-22T00:00:00Z"));
    }

    #[test]
    fn what_is_no_time_is_none() {
        for bad in [
            "",
            " ",
            "T",
            "yesterday",
            "1795000000000",
            "2026",
            "2026-11",
            "2026-13-01T00:00:00Z",
            "2026-00-01",
            "0000-00-00T00:00:00",
            "2026-02-29T00:00:00Z",
            "2026-366T00:00Z",
            "2026-000",
            "2021-W53-1",
            "2026-W47-8",
            "2026-W4",
            "2026-11-22T",
            "2026-11-22T25:00Z",
            "2026-11-22T24:00:01Z",
            "2026-11-22T10:60Z",
            "2026-11-22T10:00:61Z",
            "2026-11-22T1:00Z",
            "2026-11-22T100Z",
            "2026-11-22T10:00:00.Z",
            "2026-11-22T10:00:00.1x5Z",
            "2026-11-22T10:00:00+24:00",
            "2026-11-22T10:00:00+01:60",
            "2026-11-22T10:00:00+1",
            "2026-11-22T10:00:00Zulu",
            "2026-11-22+01:00",
            "2026-11-22T10:00:00[Europe/Berlin]",
            "Sat, 28 Nov 2026 12:00:00 GMT",
            "+99999999-01-01T00:00Z",
            "2026-11-22T10:00:0é",
        ] {
            assert_eq!(parse_iso(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_time_without_an_offset_is_local() {
        let is_local = |text: &str| IsoTime::parse(text).unwrap().is_local;
        assert!(is_local("2026-11-22T10:00:00") && is_local("2026-11-22") && is_local("20261122T10"));
        assert!(!is_local("2026-11-22T10:00:00Z") && !is_local("2026-11-22T10:00:00-00:00"));
    }

    proptest! {
        #[test]
        fn any_time_reads_as_it_was_written(ms in 0..LAST as u64) {
            prop_assert_eq!(parse_iso(&iso(UnixMs(ms))), Some(UnixMs(ms)));
        }

        #[test]
        fn no_text_panics(text in "[0-9TtWzZ+:., -]{0,40}|.{0,20}") {
            let _ = parse_iso(&text);
        }
    }
}
