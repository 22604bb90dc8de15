//! Dates of signatures: `20300102T030405Z`.

use model::time::WallTime;

/// `None` for anything but a real date and time in exactly this form, from 1970 on.
pub fn parse(text: &str) -> Option<WallTime> {
    let bytes = text.as_bytes();
    if bytes.len() != 16 || bytes[8] != b'T' || bytes[15] != b'Z' {
        return None;
    }
    let number = |from: usize, to: usize| {
        bytes[from..to].iter().try_fold(0u64, |value, digit| {
            digit.is_ascii_digit().then(|| value * 10 + u64::from(digit - b'0'))
        })
    };
    let (year, month, day) = (number(0, 4)?, number(4, 6)?, number(6, 8)?);
    let (hour, minute, second) = (number(9, 11)?, number(11, 13)?, number(13, 15)?);
    let real_day = (1..=12).contains(&month) && (1..=days_of_month(year, month)).contains(&day);
    if year < 1970 || !real_day || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second;
    Some(WallTime::from_millis(seconds * 1_000))
}

fn days_of_month(year: u64, month: u64) -> u64 {
    let leap = year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// After Howard Hinnant's `days_from_civil`, for years from 1970.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year / 400;
    let year_of_era = year % 400;
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parsed_date_prints_as_the_same_date() {
        for (text, printed) in [
            ("19700101T000000Z", "1970-01-01T00:00:00.000Z"),
            ("20000229T235959Z", "2000-02-29T23:59:59.000Z"),
            ("20261122T090101Z", "2026-11-22T09:01:01.000Z"),
            ("99991231T235959Z", "9999-12-31T23:59:59.000Z"),
        ] {
            assert_eq!(parse(text).map(|t| t.to_string()).as_deref(), Some(printed));
        }
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for text in [
            "",
            "20261122",
            "20261122T090101",
            "20261122T0901010",
            "20261322T090101Z",
            "20260230T090101Z",
            "20261100T090101Z",
            "20261122T240101Z",
            "20261122T096001Z",
            "20261122T090160Z",
            "2026112aT090101Z",
            "19691231T235959Z",
            "+2026112T090101Z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
