//! The value of a read, from a key whose windows stand at the row's time.

use crate::schema::Type;

use super::entity::{pick, places};
use super::exact::{Natural, divide, ratio, ratio_root};
use super::layout::{Layout, Number, Step, TIME, Tally};
use super::objects::{Freed, Object};
use super::plan::Aggregate;
use super::quick::{self, Reading};
use super::ring::Ring;
use super::sums::{self, Spills, Term};
use super::texts::Texts;
use super::values::compare;

/// Everything a read looks at.
pub struct View<'a> {
    pub layout: &'a Layout,
    pub slot: u32,
    pub words: &'a [u64],
    pub ring: &'a Ring,
    pub objects: &'a [Object],
    pub texts: &'a Texts,
    pub spills: &'a Spills,
}

impl View<'_> {
    /// The read's value, `None` if null; and counts a sum that overflows.
    #[inline(always)]
    pub fn read(&self, step: &Step, faults: &mut u64) -> Option<i128> {
        match step.reading {
            Reading::Places(word) => {
                let (tail, head) = places(self.words[word]);
                Some(head.wrapping_sub(tail) as i128)
            }
            Reading::Count(word) => Some(self.words[word] as i128),
            Reading::Mean { sum, count, unit } => match quick::mean(self.words, sum, count, unit) {
                Some(mean) => Some(mean.to_bits() as i128),
                None => self.moment(step, faults),
            },
            Reading::Other => self.look(step, faults),
        }
    }

    #[inline(never)]
    fn look(&self, step: &Step, faults: &mut u64) -> Option<i128> {
        match step.aggregate {
            Aggregate::Count => Some(self.count(step) as i128),
            Aggregate::NUnique => Some(self.objects[self.tally(step).unique?].unique() as i128),
            Aggregate::Min => self.best(step, self.tally(step).min?, std::cmp::Ordering::Less),
            Aggregate::Max => self.best(step, self.tally(step).max?, std::cmp::Ordering::Greater),
            Aggregate::First => self.first(step),
            Aggregate::Last => self.before(step, 1).map(|(_, value)| value),
            Aggregate::Lag(back) => self.before(step, back).map(|(_, value)| value),
            Aggregate::SinceLast => self.before(step, 1).map(|(time, _)| self.seconds_since(time)),
            Aggregate::Sum | Aggregate::Mean | Aggregate::Std | Aggregate::Var => self.moment(step, faults),
        }
    }

    fn tally(&self, step: &Step) -> &Tally {
        &self.layout.tallies[step.tally.expect("the layout gave this read a tally")]
    }

    /// All events so far, freed ones too.
    fn count(&self, step: &Step) -> u64 {
        let (tail, head) = self.places(step);
        let freed = self.layout.freed.map_or(0, |word| self.words[word]);
        head.wrapping_sub(tail) as u64 + freed
    }

    fn best(&self, step: &Step, object: usize, better: std::cmp::Ordering) -> Option<i128> {
        let Object::Extreme(places) = &self.objects[object] else { unreachable!("a place of an extreme") };
        let kept = places.front().and_then(|place| pick(&step.of, self.record(*place)));
        let freed = match step.base.map(|base| &self.objects[base]) {
            Some(Object::Best(best)) => *best,
            _ => None,
        };
        match (kept, freed) {
            (Some(a), Some(b)) => Some(if compare(step.of.kind, a, b, self.texts) == better { a } else { b }),
            (kept, freed) => kept.or(freed),
        }
    }

    fn first(&self, step: &Step) -> Option<i128> {
        if let Some(Object::First(Some((_, value)))) = step.base.map(|base| &self.objects[base]) {
            return Some(*value);
        }
        let (tail, head) = self.places(step);
        (0..head.wrapping_sub(tail)).find_map(|offset| pick(&step.of, self.record(tail.wrapping_add(offset))))
    }

    /// The event so many back from the window's newer edge, of those that pass.
    fn before(&self, step: &Step, back: u32) -> Option<Freed> {
        let (tail, head) = self.places(step);
        let mut left = back as usize;
        for offset in (0..head.wrapping_sub(tail)).rev() {
            let record = self.record(tail.wrapping_add(offset));
            if let Some(value) = pick(&step.of, record) {
                left -= 1;
                if left == 0 {
                    return Some((record[0] as i64, value));
                }
            }
        }
        match step.base.map(|base| &self.objects[base]) {
            Some(Object::Recent(recent)) => recent.iter().rev().nth(left - 1).copied(),
            _ => None,
        }
    }

    fn seconds_since(&self, time: i64) -> i128 {
        let micros = self.words[TIME] as i64 as i128 - time as i128;
        (micros as f64 / 1e6).to_bits() as i128
    }

    fn places(&self, step: &Step) -> (u32, u32) {
        places(self.words[self.layout.cursors + step.window])
    }

    fn record(&self, place: u32) -> &[u64] {
        self.ring.record(place, self.layout.stride)
    }

    #[inline(never)]
    fn moment(&self, step: &Step, faults: &mut u64) -> Option<i128> {
        let tally = self.tally(step);
        let count = self.words[tally.count];
        let least = if matches!(step.aggregate, Aggregate::Std | Aggregate::Var) { 2 } else { 1 };
        if count < least {
            return None;
        }
        let moment = Moment { view: self, tally, count };
        let result = match (step.aggregate, tally.number) {
            (Aggregate::Sum, Number::Narrow | Number::Wide) => moment.whole(step.output),
            (Aggregate::Sum | Aggregate::Mean, _) => bits(moment.mean(step.aggregate == Aggregate::Sum)),
            _ => bits(moment.spread(step.aggregate == Aggregate::Std)),
        };
        *faults += result.is_none() as u64;
        result
    }
}

fn bits(value: f64) -> Option<i128> {
    value.is_finite().then(|| value.to_bits() as i128)
}

/// The sums of one tally.
struct Moment<'a> {
    view: &'a View<'a>,
    tally: &'a Tally,
    count: u64,
}

impl Moment<'_> {
    /// The exact sum, if it fits its type.
    fn whole(&self, output: Type) -> Option<i128> {
        let sum = match self.small_sum() {
            Some(sum) => sum,
            None => {
                let (negative, magnitude, _) = self.total(false);
                let magnitude = i128::try_from(magnitude.to_u128()?).ok()?;
                if negative { -magnitude } else { magnitude }
            }
        };
        match output {
            Type::Int64 => i64::try_from(sum).is_ok().then_some(sum),
            _ => (sum.unsigned_abs() < 10u128.pow(38)).then_some(sum),
        }
    }

    /// The sum of narrow numbers, which two words always hold.
    fn small_sum(&self) -> Option<i128> {
        let at = self.tally.sum.filter(|_| self.tally.number == Number::Narrow)?;
        Some((self.view.words[at] as u128 | (self.view.words[at + 1] as u128) << 64) as i128)
    }

    fn total(&self, squared: bool) -> (bool, Natural, i32) {
        let at = if squared { self.tally.squares } else { self.tally.sum };
        let term = Term { number: self.tally.number, squared };
        sums::total(self.view.words, at.expect("a sum that is kept"), term, self.view.slot, self.view.spills)
    }

    /// The mean, or of floats the sum, rounded once.
    fn mean(&self, sum_only: bool) -> f64 {
        let count = if sum_only { 1 } else { self.count };
        if let Some(value) = self.quick_mean(count) {
            return value;
        }
        let (negative, sum, exponent) = self.total(false);
        let value = ratio(&sum, &self.unit().times(&Natural::from_u128(count as u128)), exponent);
        if negative && value != 0.0 { -value } else { value }
    }

    fn quick_mean(&self, count: u64) -> Option<f64> {
        let divisor = 10u64.checked_pow(self.scale())?.checked_mul(count)?;
        let (negative, high, exponent, inexact) = match self.small_sum() {
            Some(sum) => (sum < 0, sum.unsigned_abs(), 0, false),
            None => sums::leading(self.view.words, self.tally, self.view.slot, self.view.spills)?,
        };
        let value = divide(high, exponent, inexact, divisor);
        Some(if negative && value != 0.0 { -value } else { value })
    }

    /// The sample variance, or its root: (n·Σx² − (Σx)²) ÷ (n·(n − 1)), rounded once.
    fn spread(&self, root: bool) -> f64 {
        let ((_, sum, low), (_, squares, lower)) = (self.total(false), self.total(true));
        let count = Natural::from_u128(self.count as u128);
        let (mut sum, mut squares) = (sum.times(&sum), squares.times(&count));
        // Both at the lower of their exponents.
        let exponent = lower.min(low * 2);
        sum = sum.shifted((low * 2 - exponent) as u32);
        squares = squares.shifted((lower - exponent) as u32);
        let pairs = Natural::from_u128(self.count as u128 * (self.count as u128 - 1));
        let unit = self.unit();
        let divisor = pairs.times(&unit.times(&unit));
        let spread = squares.minus(&sum);
        if root { ratio_root(&spread, &divisor, exponent) } else { ratio(&spread, &divisor, exponent) }
    }

    fn scale(&self) -> u32 {
        self.tally.of.kind.scale()
    }

    fn unit(&self) -> Natural {
        Natural::from_u128(10u128.pow(self.scale()))
    }
}
