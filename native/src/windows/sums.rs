//! Running sums and sums of squares, exact, in a few words of a key.
//!
//! A float is added as a multiple of 2^-96 (its square, of 2^-160). The few that are too large or too fine for
//! that go to a spill, wide enough for every float; which ones depends on the value alone, so that what was added
//! can be taken away again.

use std::collections::HashMap;

use super::exact::{Natural, add_shifted, split, square};
use super::layout::{Layout, Number, Tally};

const LOW: i32 = -96;
const SPILL_LOW: i32 = -1088;
const SPILL_WORDS: usize = 36;

/// A sum of values (`power` 1) or of squares (`power` 2).
#[derive(Clone, Copy)]
pub struct Term {
    pub number: Number,
    pub squared: bool,
}

/// The wide sums of one shard, by slot and word of their key. Never iterated: their order means nothing.
#[derive(Default, Debug)]
pub struct Spills(HashMap<(u32, usize), Spill>);

#[derive(Debug)]
struct Spill {
    values: u64,
    words: Box<[u64]>,
}

impl Spill {
    fn new(term: Term) -> Spill {
        let words = if term.squared { SPILL_WORDS * 2 } else { SPILL_WORDS };
        Spill { values: 0, words: vec![0; words].into() }
    }
}

impl Spills {
    pub fn bytes(&self) -> usize {
        self.0.len() * (SPILL_WORDS * 16 + 64)
    }

    /// Drops what belongs to a key.
    pub fn forget(&mut self, slot: u32, layout: &Layout) {
        if !self.0.is_empty() {
            sums_of(layout).for_each(|at| drop(self.0.remove(&(slot, at))));
        }
    }

    /// Copies what belongs to a key, from one slot to another's.
    pub fn copy(&mut self, from: &Spills, (source, target): (u32, u32), layout: &Layout) {
        for at in sums_of(layout) {
            if let Some(spill) = from.0.get(&(source, at)) {
                let copy = Spill { values: spill.values, words: spill.words.clone() };
                self.0.insert((target, at), copy);
            }
        }
    }

    /// A spill that stays, for a value that will never be taken away.
    fn pinned(&mut self, key: (u32, usize), term: Term) -> &mut [u64] {
        let spill = self.0.entry(key).or_insert_with(|| Spill::new(term));
        spill.values += 1;
        &mut spill.words
    }

    fn add(
        &mut self,
        key: (u32, usize),
        term: Term,
        mantissa: u64,
        exponent: i32,
        negative: bool,
        away: bool,
    ) {
        let spill = self.0.entry(key).or_insert_with(|| Spill::new(term));
        let shift = (exponent - SPILL_LOW) as u32;
        match term.squared {
            false => add_shifted(&mut spill.words, mantissa as u128, shift, negative ^ away),
            true => add_shifted(&mut spill.words, mantissa as u128 * mantissa as u128, shift * 2, away),
        }
        spill.values = if away { spill.values - 1 } else { spill.values + 1 };
        if spill.values == 0 {
            self.0.remove(&key);
        }
    }
}

fn sums_of(layout: &Layout) -> impl Iterator<Item = usize> {
    layout.tallies.iter().flat_map(|tally| [tally.sum, tally.squares]).flatten()
}

/// Adds a value, or its square, to the sum at word `at` of a key; or takes it away.
#[inline]
pub fn add(
    words: &mut [u64],
    at: usize,
    term: Term,
    value: i128,
    away: bool,
    slot: u32,
    spills: &mut Spills,
) {
    match term.number {
        Number::Narrow if !term.squared => add_narrow(words, at, value, away),
        Number::Narrow | Number::Wide => add_integer(words, at, term, value, away),
        Number::Float => add_float(words, at, term, f64::from_bits(value as u64), away, (slot, at), spills),
    }
}

#[inline(always)]
pub fn add_narrow(words: &mut [u64], at: usize, value: i128, away: bool) {
    let sum = (words[at] as u128 | (words[at + 1] as u128) << 64) as i128;
    let sum = if away { sum - value } else { sum + value };
    (words[at], words[at + 1]) = (sum as u64, (sum >> 64) as u64);
}

fn add_integer(words: &mut [u64], at: usize, term: Term, value: i128, away: bool) {
    let (magnitude, negative) = (value.unsigned_abs(), value < 0);
    if !term.squared {
        return add_shifted(&mut words[at..at + term.number.sum_words()], magnitude, 0, negative ^ away);
    }
    let words = &mut words[at..at + term.number.square_words()];
    let (low, high) = square(magnitude);
    add_shifted(words, low, 0, away);
    if high != 0 {
        add_shifted(words, high, 128, away);
    }
}

fn add_float(
    words: &mut [u64],
    at: usize,
    term: Term,
    value: f64,
    away: bool,
    key: (u32, usize),
    spills: &mut Spills,
) {
    let ((mantissa, exponent), negative) = (split(value), value < 0.0);
    match (fit(mantissa, exponent, term), term.squared) {
        (Some((mantissa, shift)), false) => {
            let words = &mut words[at..at + term.number.sum_words()];
            add_shifted(words, mantissa as u128, shift, negative ^ away);
        }
        (Some((mantissa, shift)), true) => {
            let words = &mut words[at..at + term.number.square_words()];
            add_shifted(words, mantissa as u128 * mantissa as u128, shift * 2, away);
        }
        (None, _) => spills.add(key, term, mantissa, exponent, negative, away),
    }
}

/// A float as mantissa × 2^(shift + low), if it leaves room for 2^32 like it.
#[inline]
fn fit(mantissa: u64, exponent: i32, term: Term) -> Option<(u64, u32)> {
    let (low, high) = limits(term);
    if exponent > high {
        return None;
    }
    if exponent >= low {
        return Some((mantissa, (exponent - low) as u32));
    }
    let fine = (low - exponent) as u32;
    (mantissa == 0 || mantissa.trailing_zeros() >= fine).then(|| (mantissa.unbounded_shr(fine), 0))
}

fn limits(term: Term) -> (i32, i32) {
    if term.squared { (-80, -22) } else { (LOW, 9) }
}

/// The exact sum as sign and magnitude × 2^exponent.
pub fn total(words: &[u64], at: usize, term: Term, slot: u32, spills: &Spills) -> (bool, Natural, i32) {
    let count = if term.squared { term.number.square_words() } else { term.number.sum_words() };
    let words = &words[at..at + count];
    if term.number != Number::Float {
        let (negative, magnitude) = Natural::magnitude(words);
        return (negative, magnitude, 0);
    }
    let power = 1 + term.squared as i32;
    let low = limits(term).0 * power;
    let (negative, magnitude) = Natural::magnitude(words);
    if spills.0.is_empty() {
        return (negative, magnitude, low);
    }
    let Some(spill) = spills.0.get(&(slot, at)) else { return (negative, magnitude, low) };
    let mut whole = spill.words.clone();
    let shift = (low - SPILL_LOW * power) as u32;
    for (index, word) in magnitude.words().iter().enumerate() {
        add_shifted(&mut whole, *word as u128, shift + index as u32 * 64, negative);
    }
    let (negative, magnitude) = Natural::magnitude(&whole);
    (negative, magnitude, SPILL_LOW * power)
}

/// A float sum's sign and its leading 128 bits × 2^exponent, and whether there is more; none if it has a spill.
pub fn leading(words: &[u64], tally: &Tally, slot: u32, spills: &Spills) -> Option<(bool, u128, i32, bool)> {
    let at = tally.sum.filter(|_| tally.number == Number::Float)?;
    if !spills.0.is_empty() && spills.0.contains_key(&(slot, at)) {
        return None;
    }
    let negative = words[at + 2] >> 63 == 1;
    let mut sum = [words[at], words[at + 1], words[at + 2]];
    if negative {
        let whole = std::mem::take(&mut sum);
        let low = (whole[0] as u128 | (whole[1] as u128) << 64).wrapping_neg();
        sum = [low as u64, (low >> 64) as u64, (!whole[2]).wrapping_add((low == 0) as u64)];
    }
    let high = (sum[1] as u128) | (sum[2] as u128) << 64;
    let shift = high.leading_zeros().min(64);
    let (top, rest) = match shift {
        64 => (high << 64 | sum[0] as u128, 0),
        0 => (high, sum[0]),
        _ => (high << shift | (sum[0] >> (64 - shift)) as u128, sum[0] << shift),
    };
    Some((negative, top, LOW + 64 - shift as i32, rest != 0))
}

/// A sum's sign and words, equal for equal sums; a float's first word is its exponent.
pub fn canonical(words: &[u64], at: usize, term: Term, slot: u32, spills: &Spills) -> (bool, Vec<u64>) {
    let (negative, magnitude, exponent) = total(words, at, term, slot, spills);
    if term.number != Number::Float {
        return (negative, magnitude.words().to_vec());
    }
    let (odd, zeros) = magnitude.odd();
    let exponent = if odd.is_zero() { 0 } else { exponent + zeros as i32 };
    (negative, [&[exponent as i64 as u64], odd.words()].concat())
}

/// Sets a new key's sum to a canonical one.
pub fn restore(
    words: &mut [u64],
    at: usize,
    term: Term,
    negative: bool,
    canonical: &[u64],
    slot: u32,
    spills: &mut Spills,
) {
    let count = if term.squared { term.number.square_words() } else { term.number.sum_words() };
    let (exponent, magnitude) = match (term.number, canonical) {
        (Number::Float, [exponent, magnitude @ ..]) => (*exponent as i64 as i32, magnitude),
        _ => (0, canonical),
    };
    let low = if term.number == Number::Float { limits(term).0 * (1 + term.squared as i32) } else { 0 };
    // As much room as `fit` leaves, for as many values to come: a bit more, and the sum could run into its sign.
    let zeros = magnitude.last().map_or(0, |top| top.leading_zeros() as i32);
    let top = exponent + magnitude.len() as i32 * 64 - zeros;
    let inline = exponent >= low && top - low <= count as i32 * 64 - 2;
    let (target, low) = if term.number != Number::Float || inline {
        (&mut words[at..at + count], low)
    } else {
        (spills.pinned((slot, at), term), SPILL_LOW * (1 + term.squared as i32))
    };
    for (index, word) in magnitude.iter().enumerate() {
        add_shifted(target, *word as u128, (exponent - low) as u32 + index as u32 * 64, negative);
    }
}

#[cfg(test)]
mod tests {
    use super::super::streams::Random;
    use super::*;

    const SUM: Term = Term { number: Number::Float, squared: false };

    #[derive(Default)]
    struct Sum {
        words: [u64; 4],
        spills: Spills,
    }

    impl Sum {
        fn add(&mut self, term: Term, values: &[f64]) {
            for value in values {
                add(&mut self.words, 0, term, value.to_bits() as i128, false, 0, &mut self.spills);
            }
        }

        fn restored(term: Term, (negative, words): (bool, Vec<u64>)) -> Sum {
            let mut sum = Sum::default();
            restore(&mut sum.words, 0, term, negative, &words, 0, &mut sum.spills);
            sum
        }

        fn canonical(&self, term: Term) -> (bool, Vec<u64>) {
            canonical(&self.words, 0, term, 0, &self.spills)
        }
    }

    fn check(term: Term, saved: &[f64], later: &[f64]) {
        let mut whole = Sum::default();
        whole.add(term, saved);
        let mut restored = Sum::restored(term, whole.canonical(term));
        assert_eq!(restored.canonical(term), whole.canonical(term), "{saved:?}");
        whole.add(term, later);
        restored.add(term, later);
        assert_eq!(restored.canonical(term), whole.canonical(term), "{saved:?}, then {later:?}");
    }

    #[test]
    fn a_large_sum_that_was_saved_does_not_run_into_its_sign() {
        let [large, small] = [2f64.powi(95), 2f64.powi(32)];
        check(SUM, &[large, small], &[small]);
        check(SUM, &[-large, -small], &[small]);
        // Not far below the sign, and far more is to come than a few words hold.
        check(SUM, &[2f64.powi(94), 2f64.powi(32)], &[2f64.powi(61); 3]);
        check(SUM, &[2f64.powi(94) - 2f64.powi(60), 2f64.powi(32)], &vec![1.99 * 2f64.powi(61); 100_000]);
    }

    #[test]
    fn a_sum_goes_on_after_it_was_saved_as_if_it_had_never_been() {
        let mut random = Random(5);
        for _ in 0..20_000 {
            let spread = random.pick(&[1, 20, 120, 300, 2000]);
            let mut values = |count: i64| -> Vec<f64> {
                let value = |random: &mut Random| {
                    let exponent = (1023 - spread / 2 + random.below(spread)).clamp(0, 2046) as u64;
                    f64::from_bits(random.next() & !(0x7ff << 52) | exponent << 52)
                };
                (0..count).map(|_| value(&mut random)).collect()
            };
            let (saved, later) = (values(5), values(5));
            check(SUM, &saved, &later);
            check(Term { squared: true, ..SUM }, &saved, &later);
        }
    }
}
