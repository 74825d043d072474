//! Single values out of their text: integers, floats, decimals and times, read exactly or refused.
//!
//! What is wrong is worded as a kind of thing, never as the value: these words reach callers and logs.

use super::Wrong;

/// 0001-01-01T00:00:00Z and 9999-12-31T23:59:59.999999Z, in microseconds since 1970.
pub const TIMES: std::ops::RangeInclusive<i64> = -62_135_596_800_000_000..=253_402_300_799_999_999;

const DAY_US: i64 = 86_400_000_000;

pub fn read_int64(number: &str) -> Result<i64, Wrong> {
    number.parse().map_err(|_| match number.bytes().any(|byte| matches!(byte, b'.' | b'e' | b'E')) {
        true => Wrong::new("wrong_type", "a number not written as an integer"),
        false => Wrong::new("out_of_range", "an integer beyond 64 bits"),
    })
}

pub fn read_float64(number: &str) -> Result<f64, Wrong> {
    match number.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(without_negative_zero(value)),
        _ => Err(Wrong::new("out_of_range", "a number beyond 64-bit floating point")),
    }
}

/// −0.0 becomes 0.0 (the sum of the two is positive); every other value stays as it is.
pub fn without_negative_zero(value: f64) -> f64 {
    value + 0.0
}

/// Read a decimal's text into its unscaled integer, never through a float.
///
/// The text is written as JSON writes numbers. Without an exponent it may have no more decimal places than `scale`,
/// not even zeros; with one, what counts is whether the value is exact at `scale`: `1500e-3` is 1.50.
pub fn read_decimal(text: &str, precision: u8, scale: i8) -> Result<i128, Wrong> {
    let parts =
        DecimalText::split(text.as_bytes()).ok_or(Wrong::new("wrong_type", "text that is not a number"))?;
    let unscaled = match parts.exponent {
        None if parts.whole.len() + parts.fraction.len() <= 18 => parts.read_short(precision, scale)?,
        _ => parts.read_long(precision, scale)?,
    };
    Ok(if parts.negative { -unscaled } else { unscaled })
}

struct DecimalText<'a> {
    negative: bool,
    whole: &'a [u8],
    fraction: &'a [u8],
    exponent: Option<i64>,
}

impl<'a> DecimalText<'a> {
    fn split(text: &'a [u8]) -> Option<DecimalText<'a>> {
        let (negative, text) = match text {
            [b'-', rest @ ..] => (true, rest),
            _ => (false, text),
        };
        let (whole, rest) = split_digits(text)?;
        if whole.len() > 1 && whole[0] == b'0' {
            return None;
        }
        let (fraction, rest) = match rest {
            [b'.', rest @ ..] => split_digits(rest)?,
            _ => (&rest[..0], rest),
        };
        let exponent = match rest {
            [] => None,
            [b'e' | b'E', rest @ ..] => Some(read_exponent(rest)?),
            _ => return None,
        };
        Some(DecimalText { negative, whole, fraction, exponent })
    }

    /// Up to 18 digits and no exponent: nearly every amount there is.
    fn read_short(&self, precision: u8, scale: i8) -> Result<i128, Wrong> {
        if self.fraction.len() > scale as usize {
            return Err(too_many_places(self.fraction.len() as i64));
        }
        let append = |value: u64, digit: &u8| value * 10 + u64::from(digit - b'0');
        let value = self.fraction.iter().fold(self.whole.iter().fold(0, append), append);
        // At most 18 digits and 38 − 0 zeros can pass 38 only where the value passes the precision too.
        let unscaled = i128::from(value).checked_mul(power_of_ten(scale as usize - self.fraction.len()));
        unscaled
            .filter(|unscaled| *unscaled < power_of_ten(precision.into()))
            .ok_or_else(|| self.too_large(0))
    }

    /// Any number of digits, any exponent.
    fn read_long(&self, precision: u8, scale: i8) -> Result<i128, Wrong> {
        let exponent = self.exponent.unwrap_or(0);
        let digits = [self.whole, self.fraction].concat();
        let mut digits = &digits[digits.iter().take_while(|digit| **digit == b'0').count()..];
        let mut places = self.fraction.len() as i64 - exponent;
        if digits.is_empty() && self.exponent.is_some() {
            return Ok(0);
        }
        while self.exponent.is_some() && places > i64::from(scale) && digits.ends_with(b"0") {
            digits = &digits[..digits.len() - 1];
            places -= 1;
        }
        if places > i64::from(scale) {
            return Err(too_many_places(places));
        }
        let zeros = i64::from(scale) - places;
        if !digits.is_empty() && digits.len() as i64 + zeros > i64::from(precision) {
            return Err(self.too_large(exponent));
        }
        let value = digits.iter().fold(0_i128, |value, digit| value * 10 + i128::from(digit - b'0'));
        Ok(value * power_of_ten(if digits.is_empty() { 0 } else { zeros as usize }))
    }

    fn too_large(&self, exponent: i64) -> Wrong {
        let digits = self.whole.iter().chain(self.fraction);
        let zeros = digits.take_while(|digit| **digit == b'0').count() as i64;
        let before_point = self.whole.len() as i64 + exponent - zeros;
        Wrong::new(
            "out_of_range",
            format!("a number with {} before the decimal point", count(before_point, "digit")),
        )
    }
}

fn too_many_places(places: i64) -> Wrong {
    Wrong::new("too_precise", format!("a number with {}", count(places, "decimal place")))
}

fn count(number: i64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

fn split_digits(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let count = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    (count > 0).then(|| text.split_at(count))
}

/// An exponent; one that no decimal can have is held at ± 10⁹.
fn read_exponent(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    let (digits, rest) = split_digits(digits)?;
    let size =
        digits.iter().fold(0, |size: i64, digit| (size * 10 + i64::from(digit - b'0')).min(1_000_000_000));
    rest.is_empty().then_some(if negative { -size } else { size })
}

/// 10 to the power of 0 … 38.
pub fn power_of_ten(exponent: usize) -> i128 {
    const POWERS: [i128; 39] = {
        let mut powers = [1; 39];
        let mut exponent = 1;
        while exponent < 39 {
            powers[exponent] = powers[exponent - 1] * 10;
            exponent += 1;
        }
        powers
    };
    POWERS[exponent]
}

/// Read an RFC 3339 time into microseconds since 1970 UTC: `2026-11-01T12:00:00.123456+01:00`.
///
/// Stricter than the RFC: capital T (or a space) and Z, at most six fraction digits, no leap second, and a UTC year
/// from 1 to 9999, because that is what every system behind us can hold.
pub fn read_time(text: &str) -> Result<i64, Wrong> {
    let not_a_time = || Wrong::new("wrong_type", "text that is not an RFC 3339 time");
    let (clock, rest) = text.as_bytes().split_at_checked(19).ok_or_else(not_a_time)?;
    let separators =
        [clock[4], clock[7], clock[13], clock[16]] == *b"--::" && matches!(clock[10], b'T' | b' ');
    if !separators {
        return Err(not_a_time());
    }
    let number = |from: usize, to: usize| read_digits(&clock[from..to]).ok_or_else(not_a_time);
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let (fraction_us, zone) = read_fraction(rest)?;
    let offset_minutes = read_zone(zone)?;
    check_date(year, month, day)?;
    check_clock(hour, minute, second)?;
    let seconds = (hour * 60 + minute - offset_minutes) * 60 + second;
    let time = days_since_1970(year, month, day) * DAY_US + seconds * 1_000_000 + fraction_us;
    match TIMES.contains(&time) {
        true => Ok(time),
        false => Err(Wrong::new("out_of_range", "a time outside the years 1 to 9999 in UTC")),
    }
}

fn check_date(year: i64, month: i64, day: i64) -> Result<(), Wrong> {
    if year == 0 {
        return Err(Wrong::new("out_of_range", "a time outside the years 1 to 9999 in UTC"));
    }
    match (1..=12).contains(&month) && (1..=days_in_month(year, month)).contains(&day) {
        true => Ok(()),
        false => Err(Wrong::new("out_of_range", "a date that the calendar does not have")),
    }
}

fn check_clock(hour: i64, minute: i64, second: i64) -> Result<(), Wrong> {
    match (hour, minute, second) {
        (0..=23, 0..=59, 0..=59) => Ok(()),
        (0..=23, 0..=59, 60) => Err(Wrong::new("out_of_range", "a leap second")),
        _ => Err(Wrong::new("out_of_range", "a time of day that the clock does not have")),
    }
}

fn read_digits(digits: &[u8]) -> Option<i64> {
    digits
        .iter()
        .try_fold(0, |value, byte| byte.is_ascii_digit().then(|| value * 10 + i64::from(byte - b'0')))
}

fn read_fraction(rest: &[u8]) -> Result<(i64, &[u8]), Wrong> {
    let [b'.', rest @ ..] = rest else { return Ok((0, rest)) };
    match split_digits(rest) {
        None => Err(Wrong::new("wrong_type", "text that is not an RFC 3339 time")),
        Some((digits, _)) if digits.len() > 6 => {
            Err(Wrong::new("too_precise", format!("a time with {} fraction digits", digits.len())))
        }
        Some((digits, zone)) => {
            let value = digits.iter().fold(0, |value, digit| value * 10 + i64::from(digit - b'0'));
            Ok((value * 10_i64.pow(6 - digits.len() as u32), zone))
        }
    }
}

/// Minutes east of UTC.
fn read_zone(zone: &[u8]) -> Result<i64, Wrong> {
    let wrong = |given: &'static str| Err(Wrong::new("wrong_type", given));
    match *zone {
        [b'Z'] => Ok(0),
        [] => wrong("a time without an offset from UTC"),
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            match (read_digits(&[h1, h2]), read_digits(&[m1, m2])) {
                (Some(hours @ 0..=23), Some(minutes @ 0..=59)) => {
                    Ok((hours * 60 + minutes) * if sign == b'-' { -1 } else { 1 })
                }
                _ => wrong("a time whose offset from UTC is not valid"),
            }
        }
        _ => wrong("text that is not an RFC 3339 time"),
    }
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
///
/// The year is taken to begin in March, so that the leap day is its last; then (153 m + 2) / 5 counts the days of the
/// m months before, because their lengths repeat as 31, 30, 31, 30, 31.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // 719,468 days lie between 0000-03-01 and 1970-01-01.
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}
