//! The value of a read from the events of its window.

use crate::schema::Type;

use super::exact::{Natural, add_shifted, ratio, ratio_root, split, square};
use super::layout::{Layout, Step};
use super::plan::Aggregate;
use super::ring::Ring;
use super::texts::Texts;
use super::values::{compare, flag, value};

/// Everything a read looks at: the ring, and the places where its window begins and ends.
pub struct View<'a> {
    pub layout: &'a Layout,
    pub ring: &'a Ring,
    pub texts: &'a Texts,
    pub tail: u32,
    pub head: u32,
    pub time: i64,
}

impl View<'_> {
    /// The read's value, `None` if null; and counts a sum that overflows.
    pub fn read(&self, step: &Step, faults: &mut u64) -> Option<i128> {
        match step.aggregate {
            Aggregate::Count => Some(self.values(step).count() as i128),
            Aggregate::NUnique => Some(self.unique(step)),
            Aggregate::First => self.values(step).next(),
            Aggregate::Last => self.values(step).next_back(),
            Aggregate::Lag(back) => self.before(step).nth(back as usize - 1).map(|(_, value)| value),
            Aggregate::SinceLast => self.before(step).next().map(|(time, _)| seconds(self.time, time)),
            Aggregate::Min => self.values(step).min_by(|a, b| self.compare(step, *a, *b)),
            Aggregate::Max => self.values(step).max_by(|a, b| self.compare(step, *a, *b)),
            Aggregate::Sum | Aggregate::Mean | Aggregate::Std | Aggregate::Var => self.moments(step, faults),
        }
    }

    fn records(&self) -> impl DoubleEndedIterator<Item = &[u64]> {
        let places = 0..self.head.wrapping_sub(self.tail);
        places.map(|offset| self.ring.record(self.tail.wrapping_add(offset), self.layout.stride))
    }

    fn passing(&self, step: &Step) -> impl DoubleEndedIterator<Item = (i64, i128)> {
        let (slot, filter) = (step.column.map(|column| self.layout.slots[column]), step.filter);
        let passes = move |record: &&[u64]| filter.is_none_or(|bit| flag(record, bit));
        self.records().filter(passes).filter_map(move |record| {
            Some((record[0] as i64, slot.map_or(Some(0), |slot| value(slot, record))?))
        })
    }

    fn values(&self, step: &Step) -> impl DoubleEndedIterator<Item = i128> {
        self.passing(step).map(|(_, value)| value)
    }

    /// The events before the row, newest first.
    fn before(&self, step: &Step) -> impl Iterator<Item = (i64, i128)> {
        self.passing(step).rev()
    }

    fn unique(&self, step: &Step) -> i128 {
        let mut values: Vec<i128> = self.values(step).collect();
        values.sort_unstable();
        values.dedup();
        values.len() as i128
    }

    fn compare(&self, step: &Step, a: i128, b: i128) -> std::cmp::Ordering {
        let kind = step.column.map_or(Type::Int64, |column| self.layout.types[column]);
        compare(kind, a, b, self.texts)
    }

    fn moments(&self, step: &Step, faults: &mut u64) -> Option<i128> {
        let kind = self.layout.types[step.column?];
        let mut moments = Moments::new(kind);
        self.values(step).for_each(|value| moments.add(value));
        moments.result(step, faults)
    }
}

fn seconds(now: i64, then: i64) -> i128 {
    ((now as i128 - then as i128) as f64 / 1e6).to_bits() as i128
}

struct Moments {
    kind: Type,
    count: u64,
    sum: Vec<u64>,
    squares: Vec<u64>,
}

const FLOAT_LOW: i32 = -1088;

impl Moments {
    fn new(kind: Type) -> Moments {
        let words = if kind == Type::Float64 { 36 } else { 3 };
        Moments { kind, count: 0, sum: vec![0; words], squares: vec![0; words * 2] }
    }

    fn add(&mut self, value: i128) {
        self.count += 1;
        let (magnitude, negative, shift) = match self.kind {
            Type::Float64 => {
                let float = f64::from_bits(value as u64);
                let (mantissa, exponent) = split(float);
                (mantissa as u128, float < 0.0, (exponent - FLOAT_LOW) as u32)
            }
            _ => (value.unsigned_abs(), value < 0, 0),
        };
        add_shifted(&mut self.sum, magnitude, shift, negative);
        let (low, high) = square(magnitude);
        add_shifted(&mut self.squares, low, shift * 2, false);
        add_shifted(&mut self.squares, high, shift * 2 + 128, false);
    }

    fn result(&self, step: &Step, faults: &mut u64) -> Option<i128> {
        let least = if matches!(step.aggregate, Aggregate::Std | Aggregate::Var) { 2 } else { 1 };
        if self.count < least {
            return None;
        }
        let result = match (step.aggregate, step.output) {
            (Aggregate::Sum, Type::Int64 | Type::Decimal(..)) => self.whole(step.output),
            _ => Some(self.float(step.aggregate))
                .filter(|value| value.is_finite())
                .map(|value| value.to_bits() as i128),
        };
        *faults += result.is_none() as u64;
        result
    }

    fn whole(&self, output: Type) -> Option<i128> {
        let (negative, magnitude) = Natural::magnitude(&self.sum);
        let magnitude = i128::try_from(magnitude.to_u128()?).ok()?;
        let sum = if negative { -magnitude } else { magnitude };
        let fits = match output {
            Type::Int64 => i64::try_from(sum).is_ok(),
            _ => magnitude < 10i128.pow(38),
        };
        fits.then_some(sum)
    }

    fn float(&self, aggregate: Aggregate) -> f64 {
        let (low, scale) = match self.kind {
            Type::Float64 => (FLOAT_LOW, 0),
            Type::Decimal(_, scale) => (0, scale as u32),
            _ => (0, 0),
        };
        let (negative, sum) = Natural::magnitude(&self.sum);
        let unit = Natural::from_u128(10u128.pow(scale));
        let count = Natural::from_u128(self.count as u128);
        let value = match aggregate {
            Aggregate::Sum => ratio(&sum, &unit, low),
            Aggregate::Mean => ratio(&sum, &count.times(&unit), low),
            _ => {
                let squares = Natural::new(self.squares.clone());
                let spread = count.times(&squares).minus(&sum.times(&sum));
                let pairs = Natural::from_u128(self.count as u128 * (self.count as u128 - 1));
                let divisor = pairs.times(&unit).times(&unit);
                match aggregate {
                    Aggregate::Var => ratio(&spread, &divisor, low * 2),
                    _ => ratio_root(&spread, &divisor, low * 2),
                }
            }
        };
        if negative && value != 0.0 && matches!(aggregate, Aggregate::Sum | Aggregate::Mean) {
            -value
        } else {
            value
        }
    }
}
