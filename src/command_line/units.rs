//! Formats times and sizes for people. Pure.

use std::time::SystemTime;

/// A duration in its two largest units: `3d 4h`, `5m 3s`, `12s`.
pub fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

/// A number of bytes, with one decimal from 1 KiB on.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    // 1023.95 would be rounded to 1024.0, so it becomes 1.0 of the next unit.
    let mut amount = count as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next().expect("there is one");
    while amount >= 1023.95 {
        let Some(next) = units.next() else { break };
        (amount, unit) = (amount / 1024.0, next);
    }
    format!("{amount:.1} {unit}")
}

/// Used part of a limit in percent, rounded down, so that only a full one shows 100.
pub fn percent(used: u64, limit: u64) -> u64 {
    let share = u128::from(used) * 100 / u128::from(limit.max(1));
    u64::try_from(share).unwrap_or(u64::MAX)
}

/// A time in UTC, to the second, such as `2026-11-27T14:47:03Z`.
pub fn rfc3339(time: SystemTime) -> String {
    const DAY: u64 = 24 * 3600;
    let seconds = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let (year, month, day) = date(seconds / DAY);
    let (hour, minute, second) = (seconds % DAY / 3600, seconds % 3600 / 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of a number of days since 1970-01-01. Years are counted from March, so that the leap day
/// is the last day of a year.
fn date(days: u64) -> (u64, u64, u64) {
    const DAYS_TO_1970: u64 = 719_468; // from 0000-03-01
    const CENTURIES: u64 = 146_097; // days of 400 years
    let days = days + DAYS_TO_1970;
    let (era, day) = (days / CENTURIES, days % CENTURIES);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, turn) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (era * 400 + year + turn, month, day)
}
