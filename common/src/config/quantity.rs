//! Durations and sizes with their units.

use std::time::Duration;

/// `500ms`, `90s`, `5m`, `2h`, `30d`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let units = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    parse_quantity(text, &units)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("`{text}` is not a duration; write 500ms, 90s, 5m, 2h or 30d"))
}

/// SQS counts leases in whole seconds and ends them after 12 hours.
pub(super) fn parse_lease(text: &str) -> Result<Duration, String> {
    let lease = parse_duration(text)?;
    if (Duration::from_secs(2)..=Duration::from_secs(12 * 3600)).contains(&lease) {
        Ok(lease)
    } else {
        Err(format!("`{text}` is outside 2s to 12h, what SQS visibility time-outs allow"))
    }
}

/// `4096`, `64KiB`, `8MiB`, `5GiB`.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("", 1)];
    parse_quantity(text, &units)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| format!("`{text}` is not a size; write 64KiB, 8MiB or 5GiB"))
}

fn parse_quantity(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2h"), Ok(Duration::from_secs(7_200)));
        assert!(parse_duration("5").is_err() && parse_duration("-5s").is_err());
        assert!(parse_duration("99999999999999999999d").is_err());
        assert_eq!(parse_bytes("8MiB"), Ok(8 << 20));
        assert!(parse_bytes("0").is_err() && parse_bytes("8MB").is_err());
        assert!(parse_lease("13h").is_err() && parse_lease("1s").is_err());
    }
}
