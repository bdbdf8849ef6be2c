//! Time as a value: what the log stamps, and the clock everything that decides is given.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Microseconds since the Unix epoch, UTC, as the writer's clock had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Milliseconds since the Unix epoch, rounded down.
    pub fn as_millis(self) -> u64 {
        self.0 / 1_000
    }

    /// This instant and `milliseconds` more.
    #[must_use]
    pub fn plus_millis(self, milliseconds: u64) -> Self {
        Self(self.0.saturating_add(milliseconds.saturating_mul(1_000)))
    }

    /// Milliseconds from `earlier` to this; 0 if `earlier` is later.
    pub fn millis_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0) / 1_000
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with milliseconds, the form the replay tool prints and reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / 1_000_000;
        let (days, day) = (seconds / 86_400, seconds % 86_400);
        let (year, month, date) = civil_from_days(days as i64);
        write!(
            f,
            "{year:04}-{month:02}-{date:02}T{:02}:{:02}:{:02}.{:03}Z",
            day / 3_600,
            day / 60 % 60,
            day % 60,
            self.0 / 1_000 % 1_000
        )
    }
}

/// Gregorian date of a day number counted from 1970-01-01 (era arithmetic: 400 years are 146 097 days).
fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let shifted = days + 719_468; // days from 0000-03-01, so that a leap day ends its year
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let date = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month as u32, date as u32)
}

/// Why a text is not a point in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a time: write it like 2026-11-22T15:04:05.678Z (UTC; fraction optional), or as Unix milliseconds"
)]
pub struct InvalidTimestamp(pub String);

impl std::str::FromStr for Timestamp {
    type Err = InvalidTimestamp;

    fn from_str(text: &str) -> Result<Self, InvalidTimestamp> {
        let bad = || InvalidTimestamp(text.to_owned());
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return text.parse::<u64>().ok().and_then(|ms| ms.checked_mul(1_000)).map(Self).ok_or_else(bad);
        }
        let (date, time) = text.strip_suffix('Z').and_then(|t| t.split_once(['T', ' '])).ok_or_else(bad)?;
        let mut d = date.splitn(3, '-').map(str::parse::<u32>);
        let (Some(Ok(year)), Some(Ok(month)), Some(Ok(day))) = (d.next(), d.next(), d.next()) else {
            return Err(bad());
        };
        let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
        let mut t = clock.splitn(3, ':').map(str::parse::<u64>);
        let (Some(Ok(h)), Some(Ok(m)), Some(Ok(s))) = (t.next(), t.next(), t.next()) else {
            return Err(bad());
        };
        let in_range = (1970..=9999).contains(&year)
            && (1..=12).contains(&month)
            && (1..=31).contains(&day)
            && h < 24
            && m < 60
            && s < 60;
        if !in_range
            || fraction.is_empty()
            || fraction.len() > 6
            || !fraction.bytes().all(|b| b.is_ascii_digit())
        {
            return Err(bad());
        }
        let micros = fraction.parse::<u64>().map_err(|_| bad())? * 10u64.pow(6 - fraction.len() as u32);
        let days = days_from_civil(i64::from(year), month, day);
        if civil_from_days(days) != (i64::from(year), month, day) {
            return Err(bad()); // such as the 30th of February
        }
        Ok(Self((days as u64 * 86_400 + h * 3_600 + m * 60 + s) * 1_000_000 + micros))
    }
}

/// Day number of a Gregorian date, counted from 1970-01-01.
fn days_from_civil(year: i64, month: u32, day: u32) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = i64::from((month + 9) % 12);
    let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(day) - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Where the time comes from. Production reads the machine's clock, tests and the simulation hand out their own.
pub trait Clock: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "the one edge where the wall clock is read")]
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp(since.as_micros() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_reads_back_as_it_was_written() {
        for text in [
            "1970-01-01T00:00:00.000Z",
            "2024-02-29T23:59:59.999Z",
            "2026-11-22T15:04:05.678Z",
            "2100-03-01T00:00:00.000Z",
        ] {
            assert_eq!(text.parse::<Timestamp>().unwrap().to_string(), text);
        }
        assert_eq!("2026-11-22T15:04:05Z".parse::<Timestamp>().unwrap().as_millis(), 1_795_359_845_000);
        for bad in ["", "yesterday", "2026-02-30T00:00:00Z", "2026-11-22T25:00:00Z", "2026-11-22T15:04:05"] {
            assert!(bad.parse::<Timestamp>().is_err(), "{bad:?}");
        }
    }
}
