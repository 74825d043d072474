//! Integers and floats: DuckDB's results, and a fault where it would raise or leave the finite numbers.

use super::column::{Args, Outcome, checked, checked_one};
use super::decimal;
use super::plan::Operation;
use crate::schema::Type;

pub(super) fn binary(args: &Args) -> Outcome {
    match args.node.kind {
        Type::Int64 => integers(args),
        Type::Decimal(..) => decimal::binary(args),
        _ => floats(args),
    }
}

fn integers(args: &Args) -> Outcome {
    let (left, right) = (args.ints(0), args.ints(1));
    match args.node.operation {
        Operation::Add => checked(args, left, right, i64::overflowing_add),
        Operation::Subtract => checked(args, left, right, i64::overflowing_sub),
        Operation::Multiply => checked(args, left, right, i64::overflowing_mul),
        _ => checked(args, left, right, remainder),
    }
}

fn remainder(left: i64, right: i64) -> (i64, bool) {
    left.checked_rem(right).map_or((0, true), |value| (value, false))
}

fn floats(args: &Args) -> Outcome {
    let (left, right) = (args.floats(0), args.floats(1));
    match args.node.operation {
        Operation::Add => checked(args, left, right, |left, right| finite(left + right)),
        Operation::Subtract => checked(args, left, right, |left, right| finite(left - right)),
        Operation::Multiply => checked(args, left, right, |left, right| finite(left * right)),
        Operation::Divide => checked(args, left, right, |left, right| finite(left / right)),
        _ => checked(args, left, right, |left, right| finite(left % right)),
    }
}

fn finite(value: f64) -> (f64, bool) {
    (value, !value.is_finite())
}

pub(super) fn unary(args: &Args) -> Outcome {
    match (args.node.operation, args.node.kind) {
        (_, Type::Decimal(..)) => decimal::unary(args),
        (Operation::Negate, Type::Int64) => checked_one(args, args.ints(0), i64::overflowing_neg),
        (Operation::Absolute, Type::Int64) => checked_one(args, args.ints(0), i64::overflowing_abs),
        (Operation::Round, Type::Int64) => round_integers(args),
        (Operation::Negate, _) => checked_one(args, args.floats(0), |value| finite(-value)),
        (Operation::Absolute, _) => checked_one(args, args.floats(0), |value| finite(value.abs())),
        (Operation::Floor, _) => checked_one(args, args.floats(0), |value| finite(value.floor())),
        (Operation::Ceil, _) => checked_one(args, args.floats(0), |value| finite(value.ceil())),
        _ => round_floats(args),
    }
}

/// To tens, hundreds and so on, half away from zero.
fn round_integers(args: &Args) -> Outcome {
    let places = args.node.digits.unsigned_abs();
    checked_one(args, args.ints(0), |value| {
        let rounded = decimal::round_to_multiple(value.into(), places);
        i64::try_from(rounded).map_or((0, true), |value| (value, false))
    })
}

/// As DuckDB does it: scaled, rounded half away from zero, scaled back; and where that leaves the
/// finite numbers, the value itself, or 0 for digits before the point.
fn round_floats(args: &Args) -> Outcome {
    let digits = args.node.digits;
    let modifier = 10f64.powf(f64::from(digits.unsigned_abs()));
    let (side, or_zero) = (args.floats(0), |value: f64| if value.is_finite() { value } else { 0.0 });
    match digits {
        0 => checked_one(args, side, |value| finite(value.round())),
        1.. => checked_one(args, side, |value| {
            let rounded = (value * modifier).round() / modifier;
            finite(if rounded.is_finite() { rounded } else { value })
        }),
        _ => checked_one(args, side, |value| finite(or_zero((value / modifier).round() * modifier))),
    }
}

pub(super) fn transcendental(args: &Args) -> Outcome {
    let side = args.floats(0);
    match args.node.operation {
        Operation::Ln => checked_one(args, side, |value| finite(value.ln())),
        Operation::Exp => checked_one(args, side, |value| finite(value.exp())),
        Operation::Sqrt => checked_one(args, side, |value| finite(value.sqrt())),
        _ => checked(args, side, args.floats(1), |base, exponent| finite(base.powf(exponent))),
    }
}
