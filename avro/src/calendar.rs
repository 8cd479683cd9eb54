//! Civil dates and times of day as text, for years the `time` crate does not reach: an Avro
//! timestamp in milliseconds spans ±292 million years.

use super::schema::Unit;

/// Days from 1970-01-01 to 2000-01-01, PostgreSQL's epoch.
pub(crate) const POSTGRES_EPOCH_DAYS: i32 = 10_957;
pub(crate) const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;
pub(crate) const DAY_MICROS: i64 = 86_400_000_000;

/// Year, month and day of a day count since 1970-01-01, proleptic Gregorian; year 0 is 1 BC.
/// From H. Hinnant, "chrono-Compatible Low-Level Date Algorithms".
pub(crate) fn civil(days: i64) -> (i64, u32, u32) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * shifted_month + 2) / 5 + 1) as u32;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 } as u32;
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

/// The inverse of [`civil`].
pub(crate) fn days(year: i64, month: u32, day: u32) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted_month = i64::from((month + 9) % 12);
    let day_of_year = (153 * shifted_month + 2) / 5 + i64::from(day) - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Days since 1970-01-01 of `YYYY-MM-DD`, if it is a date that exists.
pub(crate) fn parse_date(text: &str) -> Option<i32> {
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2] = text.as_bytes() else { return None };
    let number = |digits: &[&u8]| {
        digits.iter().try_fold(0u32, |sum, digit| {
            digit.is_ascii_digit().then(|| sum * 10 + u32::from(**digit - b'0'))
        })
    };
    let (year, month, day) = (number(&[y1, y2, y3, y4])?, number(&[m1, m2])?, number(&[d1, d2])?);
    if !(1..=12).contains(&month) || day == 0 {
        return None;
    }
    let count = days(i64::from(year), month, day);
    // A day past the month's end comes back as another date.
    (civil(count) == (i64::from(year), month, day)).then_some(count as i32)
}

/// Whether a day lies in the years 0000 to 9999, all that ISO 8601 text and SQLite's date
/// functions agree on.
pub(crate) fn four_digit_year(days: i64) -> bool {
    (-719_528..=2_932_896).contains(&days)
}

/// `YYYY-MM-DD`; years outside 0000 to 9999 get a sign, as ISO 8601 has it.
pub(crate) fn write_date(days: i64, out: &mut Vec<u8>) {
    let (year, month, day) = civil(days);
    if (0..=9999).contains(&year) {
        out.extend_from_slice(&two(year as u64 / 100));
        out.extend_from_slice(&two(year as u64 % 100));
    } else {
        out.extend_from_slice(format!("{year:+05}").as_bytes());
    }
    out.push(b'-');
    out.extend_from_slice(&two(u64::from(month)));
    out.push(b'-');
    out.extend_from_slice(&two(u64::from(day)));
}

/// `HH:MM:SS.fff`, with as many digits of a second as the unit has.
pub(crate) fn write_time(since_midnight: u64, unit: Unit, out: &mut Vec<u8>) {
    let (per_second, digits) = resolution(unit);
    let seconds = since_midnight / per_second;
    out.extend_from_slice(&two(seconds / 3600));
    out.push(b':');
    out.extend_from_slice(&two(seconds / 60 % 60));
    out.push(b':');
    out.extend_from_slice(&two(seconds % 60));
    out.push(b'.');
    let fraction = since_midnight % per_second;
    let mut divisor = per_second / 10;
    for _ in 0..digits {
        out.push(b'0' + (fraction / divisor % 10) as u8);
        divisor = (divisor / 10).max(1);
    }
}

/// `YYYY-MM-DDTHH:MM:SS.fff`, then `Z` unless `local`.
pub(crate) fn write_timestamp(value: i64, unit: Unit, local: bool, out: &mut Vec<u8>) {
    let per_day = resolution(unit).0 as i64 * 86_400;
    write_date(value.div_euclid(per_day), out);
    out.push(b'T');
    write_time(value.rem_euclid(per_day) as u64, unit, out);
    if !local {
        out.push(b'Z');
    }
}

/// Days since 1970-01-01 that a timestamp falls on.
pub(crate) fn day_of(value: i64, unit: Unit) -> i64 {
    value.div_euclid(resolution(unit).0 as i64 * 86_400)
}

/// An ISO 8601 duration, `P1M2DT3.004S`.
pub(crate) fn write_duration(months: u32, days: u32, millis: u32, out: &mut Vec<u8>) {
    let (seconds, fraction) = (millis / 1000, millis % 1000);
    out.extend_from_slice(format!("P{months}M{days}DT{seconds}.{fraction:03}S").as_bytes());
}

/// Ticks per second and decimal digits of a second.
fn resolution(unit: Unit) -> (u64, u32) {
    match unit {
        Unit::Millis => (1_000, 3),
        Unit::Micros => (1_000_000, 6),
        Unit::Nanos => (1_000_000_000, 9),
    }
}

/// `value` below 100 as two digits.
fn two(value: u64) -> [u8; 2] {
    [b'0' + (value / 10) as u8, b'0' + (value % 10) as u8]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl Fn(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn dates() {
        for (days, expected) in [
            (0, "1970-01-01"),
            (-1, "1969-12-31"),
            (-719_162, "0001-01-01"),
            (-719_528, "0000-01-01"),
            (-719_529, "-0001-12-31"),
            (2_932_896, "9999-12-31"),
            (2_932_897, "+10000-01-01"),
            (11_016, "2000-02-29"),
        ] {
            assert_eq!(text(|out| write_date(days, out)), expected);
            let (year, month, day) = civil(days);
            assert_eq!(super::days(year, month, day), days);
        }
        assert_eq!(parse_date("2000-02-29"), Some(11_016));
        assert_eq!(parse_date("2001-02-29"), None);
        assert_eq!(parse_date("2001-2-9"), None);
    }

    #[test]
    fn timestamps() {
        let check = |value, unit, local| text(|out| write_timestamp(value, unit, local, out));
        assert_eq!(check(0, Unit::Millis, false), "1970-01-01T00:00:00.000Z");
        assert_eq!(check(-1, Unit::Micros, true), "1969-12-31T23:59:59.999999");
        assert_eq!(check(1_234_567_890, Unit::Nanos, false), "1970-01-01T00:00:01.234567890Z");
        check(i64::MIN, Unit::Millis, false);
        check(i64::MAX, Unit::Millis, false);
        assert_eq!(text(|out| write_duration(1, 2, 3004, out)), "P1M2DT3.004S");
    }
}
