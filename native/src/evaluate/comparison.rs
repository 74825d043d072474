//! Comparisons, and membership in a list of constants. Texts compare by their bytes.

use std::cmp::Ordering;

use arrow_buffer::BooleanBuffer;
use hashbrown::HashSet;

use super::column::{Args, Outcome, Scalar, Side, Source, Texts, bits, test};
use super::decimal;
use super::plan::Operation;
use crate::schema::Type;

pub(super) fn compare(args: &Args) -> Outcome {
    let values = match args.kind(0) {
        Type::Bool => compare_bools(args),
        Type::Int64 | Type::Timestamp => ordered(args, args.ints(0), args.ints(1)),
        Type::Float64 => ordered(args, args.floats(0), args.floats(1)),
        Type::Decimal(..) => compare_decimals(args),
        Type::Text => compare_texts(args),
    };
    Outcome::whole(values, args.nulls())
}

fn ordered<T: Copy + PartialOrd>(args: &Args, left: Side<T>, right: Side<T>) -> BooleanBuffer {
    let rows = args.rows;
    match args.node.operation {
        Operation::Equal => test(rows, left, right, |left, right| left == right),
        Operation::NotEqual => test(rows, left, right, |left, right| left != right),
        Operation::Less => test(rows, left, right, |left, right| left < right),
        Operation::LessEqual => test(rows, left, right, |left, right| left <= right),
        Operation::Greater => test(rows, left, right, |left, right| left > right),
        _ => test(rows, left, right, |left, right| left >= right),
    }
}

fn compare_decimals(args: &Args) -> BooleanBuffer {
    let (left, right) = (args.decimals(0), args.decimals(1));
    let (left_factor, right_factor, narrow) = decimal::common_scale(args);
    if left_factor == 1 && right_factor == 1 {
        return ordered(args, left, right);
    }
    let holds = holding(args.node.operation);
    if narrow {
        return test(args.rows, left, right, |left, right| {
            holds(left.wrapping_mul(left_factor).cmp(&right.wrapping_mul(right_factor)))
        });
    }
    test(args.rows, left, right, |left, right| holds(decimal::order(left, left_factor, right, right_factor)))
}

fn compare_texts(args: &Args) -> BooleanBuffer {
    let (left, right) = (args.texts(0), args.texts(1));
    match args.node.operation {
        Operation::Equal => bits(args.rows, |row| left.get(row) == right.get(row)),
        Operation::NotEqual => bits(args.rows, |row| left.get(row) != right.get(row)),
        operation => {
            let holds = holding(operation);
            bits(args.rows, |row| holds(left.get(row).cmp(right.get(row))))
        }
    }
}

fn compare_bools(args: &Args) -> BooleanBuffer {
    let (left, right) = (args.bools(0), args.bools(1));
    let holds = holding(args.node.operation);
    bits(args.rows, |row| holds(left.get(row).cmp(&right.get(row))))
}

fn holding(operation: Operation) -> fn(Ordering) -> bool {
    match operation {
        Operation::Equal => Ordering::is_eq,
        Operation::NotEqual => Ordering::is_ne,
        Operation::Less => Ordering::is_lt,
        Operation::LessEqual => Ordering::is_le,
        Operation::Greater => Ordering::is_gt,
        _ => Ordering::is_ge,
    }
}

// Membership

/// The constants of an `in` list.
#[derive(Debug, Default)]
pub(super) struct Members {
    ints: HashSet<i64>,
    floats: HashSet<u64>,
    decimals: HashSet<i128>,
    texts: HashSet<Box<[u8]>>,
    /// With a null in the list, what is not found may be there all the same.
    null: bool,
}

impl Members {
    pub fn new(scalars: impl Iterator<Item = Scalar>) -> Members {
        let mut members = Members::default();
        for scalar in scalars {
            members.add(scalar);
        }
        members
    }

    fn add(&mut self, scalar: Scalar) {
        match scalar {
            Scalar::Null | Scalar::Bool(_) => self.null = true,
            Scalar::Int(value) => drop(self.ints.insert(value)),
            Scalar::Float(value) => drop(self.floats.insert(float_key(value))),
            Scalar::Decimal(value) => drop(self.decimals.insert(value)),
            Scalar::Text(value) => drop(self.texts.insert(value.as_ref().into())),
        }
    }
}

/// −0.0 and 0.0 are equal, and so have one key.
fn float_key(value: f64) -> u64 {
    (value + 0.0).to_bits()
}

pub(super) fn among(args: &Args) -> Outcome {
    let members = args.node.members.as_ref().expect("binding gives every list its members");
    let rows = args.rows;
    let found = match args.kind(0) {
        Type::Int64 | Type::Timestamp => contained(rows, args.ints(0), |value| members.ints.contains(&value)),
        Type::Float64 => contained(rows, args.floats(0), |value| members.floats.contains(&float_key(value))),
        Type::Decimal(..) => contained(rows, args.decimals(0), |value| members.decimals.contains(&value)),
        _ => texts_contained(rows, args.texts(0), members),
    };
    if !members.null {
        return Outcome::whole(found, args.nulls());
    }
    let nulls = arrow_buffer::NullBuffer::new(found.clone());
    let nulls = arrow_buffer::NullBuffer::union(args.nulls().as_ref(), Some(&nulls));
    Outcome::whole(found, nulls)
}

fn contained<T: Copy>(rows: usize, side: Side<T>, holds: impl Fn(T) -> bool) -> BooleanBuffer {
    test(rows, side, Side::One(()), |value, ()| holds(value))
}

fn texts_contained(rows: usize, texts: Texts, members: &Members) -> BooleanBuffer {
    bits(rows, |row| members.texts.contains(texts.get(row)))
}
