//! Exact decimals: 128-bit integers with a scale that their type knows.
//!
//! A type that leaves room for every result lets the loop run unchecked; only where the precision
//! was cut to 38 digits is each result checked, with 256 bits where a step needs them.

use std::cmp::Ordering;
use std::io::Write;

use arrow_buffer::i256;

use super::column::{Args, Outcome, checked, checked_one, pairs};
use super::plan::Operation;
use crate::schema::Type;

/// 10^0 to 10^38.
const POWERS: [i128; 39] = {
    let mut powers = [1i128; 39];
    let mut place = 1;
    while place < 39 {
        powers[place] = powers[place - 1] * 10;
        place += 1;
    }
    powers
};

/// A decimal's digits before and after the point.
fn shape(kind: Type) -> (usize, usize) {
    match kind {
        Type::Decimal(precision, scale) => (precision as usize - scale as usize, scale as usize),
        other => unreachable!("binding lets no {other} here"),
    }
}

fn limit(kind: Type) -> i128 {
    let (whole, scale) = shape(kind);
    POWERS[whole + scale]
}

/// A value, and whether it is beyond the type's digits.
fn within(value: Option<i128>, limit: i128) -> (i128, bool) {
    match value {
        Some(value) if -limit < value && value < limit => (value, false),
        _ => (0, true),
    }
}

// Arithmetic

pub(super) fn binary(args: &Args) -> Outcome {
    match args.node.operation {
        Operation::Add => sum(args, 1),
        Operation::Subtract => sum(args, -1),
        Operation::Multiply => product(args),
        _ => remainder(args),
    }
}

/// What brings each argument to the result's scale, and the digits before the point of the wider.
fn factors(args: &Args) -> (i128, i128, usize) {
    let ((left_whole, left), (right_whole, right)) = (shape(args.kind(0)), shape(args.kind(1)));
    let scale = left.max(right);
    (POWERS[scale - left], POWERS[scale - right], left_whole.max(right_whole))
}

fn sum(args: &Args, sign: i128) -> Outcome {
    let (left, right) = (args.decimals(0), args.decimals(1));
    let (left_factor, right_factor, whole) = factors(args);
    let right_factor = sign * right_factor;
    let (result_whole, _) = shape(args.node.kind);
    if whole < result_whole {
        let values = pairs(args.rows, left, right, |left, right| {
            left.wrapping_mul(left_factor).wrapping_add(right.wrapping_mul(right_factor))
        });
        return Outcome::whole(values, args.nulls());
    }
    let limit = limit(args.node.kind);
    checked(args, left, right, |left, right| {
        within(sum_exactly(left, left_factor, right, right_factor), limit)
    })
}

fn sum_exactly(left: i128, left_factor: i128, right: i128, right_factor: i128) -> Option<i128> {
    let narrow = left.checked_mul(left_factor).zip(right.checked_mul(right_factor));
    match narrow.and_then(|(left, right)| left.checked_add(right)) {
        Some(sum) => Some(sum),
        None => (widened(left, left_factor) + widened(right, right_factor)).to_i128(),
    }
}

/// A product of two 128-bit integers always fits 256 bits, and so does the sum of two such.
fn widened(value: i128, factor: i128) -> i256 {
    i256::from_i128(value).wrapping_mul(i256::from_i128(factor))
}

fn product(args: &Args) -> Outcome {
    let (left, right) = (args.decimals(0), args.decimals(1));
    let digits = |kind| shape(kind).0 + shape(kind).1;
    if digits(args.kind(0)) + digits(args.kind(1)) <= digits(args.node.kind) {
        return Outcome::whole(pairs(args.rows, left, right, i128::wrapping_mul), args.nulls());
    }
    let limit = limit(args.node.kind);
    checked(args, left, right, |left, right| within(left.checked_mul(right), limit))
}

fn remainder(args: &Args) -> Outcome {
    let (left_factor, right_factor, _) = factors(args);
    let limit = limit(args.node.kind);
    checked(args, args.decimals(0), args.decimals(1), |left, right| {
        within(remainder_exactly(left, left_factor, right, right_factor), limit)
    })
}

fn remainder_exactly(left: i128, left_factor: i128, right: i128, right_factor: i128) -> Option<i128> {
    match left.checked_mul(left_factor).zip(right.checked_mul(right_factor)) {
        Some((left, right)) => left.checked_rem(right),
        None => widened(left, left_factor).checked_rem(widened(right, right_factor))?.to_i128(),
    }
}

pub(super) fn unary(args: &Args) -> Outcome {
    let side = args.decimals(0);
    let (_, scale) = shape(args.kind(0));
    let (factor, limit) = (POWERS[scale], limit(args.node.kind));
    match args.node.operation {
        Operation::Negate => checked_one(args, side, |value| (value.wrapping_neg(), false)),
        Operation::Absolute => checked_one(args, side, |value| (value.wrapping_abs(), false)),
        Operation::Floor => checked_one(args, side, |value| within(Some(value.div_euclid(factor)), limit)),
        Operation::Ceil => checked_one(args, side, |value| within(Some(-(-value).div_euclid(factor)), limit)),
        _ => round(args, scale),
    }
}

/// Half away from zero. The result has no more scale than the digits asked for, and none below 0.
fn round(args: &Args, scale: usize) -> Outcome {
    let (_, kept) = shape(args.node.kind);
    let (limit, digits) = (limit(args.node.kind), args.node.digits);
    let (dropped, restored) = (POWERS[scale - kept], digits.min(0).unsigned_abs());
    checked_one(args, args.decimals(0), |value| {
        let rounded = if digits < 0 {
            round_to_multiple(value, scale as u32 + restored) / dropped
        } else {
            divide_rounding(value, dropped)
        };
        within(Some(rounded), limit)
    })
}

/// To the nearest multiple of 10^places, half away from zero; saturated, beyond every limit, where
/// that multiple needs more than 128 bits.
pub(super) fn round_to_multiple(value: i128, places: u32) -> i128 {
    match POWERS.get(places as usize) {
        Some(&unit) => divide_rounding(value, unit).saturating_mul(unit),
        None => 0,
    }
}

fn divide_rounding(value: i128, unit: i128) -> i128 {
    let (quotient, rest) = (value / unit, (value % unit).abs());
    if rest >= unit - rest && rest > 0 { quotient + value.signum() } else { quotient }
}

// Comparison

/// Compare values of different scales exactly.
pub(super) fn order(left: i128, left_factor: i128, right: i128, right_factor: i128) -> Ordering {
    match (left.checked_mul(left_factor), right.checked_mul(right_factor)) {
        (Some(left), Some(right)) => left.cmp(&right),
        // One factor is 1, so at most one side is beyond 128 bits, and then its sign decides.
        (None, _) => left.cmp(&0),
        (_, None) => 0.cmp(&right),
    }
}

/// The factors for `order`, and whether no value of these types can be beyond 128 bits.
pub(super) fn common_scale(args: &Args) -> (i128, i128, bool) {
    let (left_factor, right_factor, whole) = factors(args);
    let scale = shape(args.kind(0)).1.max(shape(args.kind(1)).1);
    (left_factor, right_factor, whole + scale <= 38)
}

// Conversion

pub(super) fn cast(args: &Args) -> Outcome {
    match (args.kind(0), args.node.kind) {
        (Type::Int64, Type::Float64) => checked_one(args, args.ints(0), |value| (value as f64, false)),
        (Type::Int64, kind) => {
            let (factor, limit) = (POWERS[shape(kind).1], limit(kind));
            checked_one(args, args.ints(0), |value| within(i128::from(value).checked_mul(factor), limit))
        }
        (kind, Type::Float64) => {
            let (_, scale) = shape(kind);
            checked_one(args, args.decimals(0), |value| (to_float(value, scale), false))
        }
        (from, to) => {
            let (factor, limit) = (POWERS[shape(to).1 - shape(from).1], limit(to));
            checked_one(args, args.decimals(0), |value| within(value.checked_mul(factor), limit))
        }
    }
}

/// The nearest float64.
///
/// Where both the digits and the power of ten are exact as floats, so is everything but the one
/// rounding of their quotient. Else the standard library reads the number's text.
pub(super) fn to_float(value: i128, scale: usize) -> f64 {
    const EXACT: i128 = 1 << 53;
    if (-EXACT..=EXACT).contains(&value) && scale <= 22 {
        return value as i64 as f64 / POWERS_EXACT[scale];
    }
    let mut text = [0u8; 64];
    let space = text.len();
    let mut rest = &mut text[..];
    write!(rest, "{value}e-{scale}").expect("at most 40 digits, a sign and an exponent");
    let used = space - rest.len();
    let text = std::str::from_utf8(&text[..used]).expect("digits are ASCII");
    text.parse().expect("digits with an exponent are a number")
}

/// The powers of ten that a float64 holds exactly.
const POWERS_EXACT: [f64; 23] = {
    let mut powers = [1f64; 23];
    let mut place = 0;
    while place < 23 {
        powers[place] = POWERS[place] as f64;
        place += 1;
    }
    powers
};
