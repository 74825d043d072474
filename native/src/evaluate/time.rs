//! Parts of a timestamp, in UTC and the proleptic Gregorian calendar.
//!
//! Days become dates by counting years from March, so that the leap day is a year's last: see
//! Howard Hinnant, "chrono-compatible low-level date algorithms".

use serde::{Deserialize, Serialize};

use super::column::{Args, Outcome, checked_one};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Unit {
    Year,
    Quarter,
    Month,
    Week,
    Day,
    Hour,
    Minute,
    Second,
    Dow,
    Isodow,
    Doy,
    Epoch,
}

impl Unit {
    pub fn truncates(self) -> bool {
        !matches!(self, Unit::Dow | Unit::Isodow | Unit::Doy | Unit::Epoch)
    }
}

const SECOND: i64 = 1_000_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

fn unit(args: &Args) -> Unit {
    args.node.unit.expect("binding wants a unit")
}

// Parts

pub(super) fn extract(args: &Args) -> Outcome {
    let times = args.ints(0);
    let days = |time: i64| time.div_euclid(DAY);
    let part = |of: fn(i64) -> i64| checked_one(args, times, |time| (of(days(time)), false));
    let clock = |size: i64, count: i64| {
        checked_one(args, times, |time| (time.div_euclid(size).rem_euclid(count), false))
    };
    match unit(args) {
        Unit::Year => part(|day| date(day).0),
        Unit::Quarter => part(|day| (date(day).1 + 2) / 3),
        Unit::Month => part(|day| date(day).1),
        Unit::Week => part(iso_week),
        Unit::Day => part(|day| date(day).2),
        Unit::Hour => clock(HOUR, 24),
        Unit::Minute => clock(MINUTE, 60),
        Unit::Second => clock(SECOND, 60),
        Unit::Dow => part(|day| iso_weekday(day) % 7),
        Unit::Isodow => part(iso_weekday),
        Unit::Doy => part(|day| day - first_of(date(day).0, 1) + 1),
        Unit::Epoch => checked_one(args, times, |time| (time as f64 / SECOND as f64, false)),
    }
}

/// Monday is 1, Sunday 7; day 0 was a Thursday.
fn iso_weekday(day: i64) -> i64 {
    (day + 3).rem_euclid(7) + 1
}

/// A week belongs to the year of its Thursday.
fn iso_week(day: i64) -> i64 {
    let thursday = day + 4 - iso_weekday(day);
    (thursday - first_of(date(thursday).0, 1)) / 7 + 1
}

// The beginning of a unit

pub(super) fn truncate(args: &Args) -> Outcome {
    let days = |time: i64| time.div_euclid(DAY);
    let to = |size: i64| checked_one(args, args.ints(0), |time| start(time.div_euclid(size), size));
    let to_date = |of: fn(i64) -> i64| checked_one(args, args.ints(0), |time| start(of(days(time)), DAY));
    match unit(args) {
        Unit::Second => to(SECOND),
        Unit::Minute => to(MINUTE),
        Unit::Hour => to(HOUR),
        Unit::Week => to_date(|day| day + 1 - iso_weekday(day)),
        Unit::Month => to_date(|day| day + 1 - date(day).2),
        Unit::Quarter => to_date(|day| {
            let (year, month, _) = date(day);
            first_of(year, (month - 1) / 3 * 3 + 1)
        }),
        Unit::Year => to_date(|day| first_of(date(day).0, 1)),
        _ => to(DAY),
    }
}

/// Microseconds at the start of a unit, which may be before the first that 64 bits hold.
fn start(count: i64, size: i64) -> (i64, bool) {
    count.overflowing_mul(size)
}

// Dates

/// Year, month and day of the month.
fn date(day: i64) -> (i64, i64, i64) {
    let shifted = day + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// The day number of a month's first.
fn first_of(year: i64, month: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let from_march = if month > 2 { month - 3 } else { month + 9 };
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + (153 * from_march + 2) / 5;
    era * 146_097 + day_of_era - 719_468
}
