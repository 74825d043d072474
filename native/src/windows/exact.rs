//! Exact sums, rounded once.
//!
//! Sums are whole numbers of many words (two's complement, lowest word first), so that they do not depend on the
//! order of what was added or taken away. A float is such a number too, times a power of two. Only the result is
//! rounded: to the nearest float64, ties to even.

use std::cmp::Ordering;

/// Adds or subtracts magnitude × 2^shift, wrapping.
#[inline]
pub fn add_shifted(words: &mut [u64], magnitude: u128, shift: u32, negative: bool) {
    let (skip, bits) = (shift as usize / 64, shift % 64);
    let (low, middle) = (magnitude as u64, (magnitude >> 64) as u64);
    let parts = match bits {
        0 => [low, middle, 0],
        _ => [low << bits, middle << bits | low >> (64 - bits), middle >> (64 - bits)],
    };
    let mut carry = false;
    for (index, word) in words.iter_mut().enumerate().skip(skip) {
        let part = parts.get(index - skip).copied().unwrap_or(0);
        (*word, carry) = if negative { borrowing(*word, part, carry) } else { carrying(*word, part, carry) };
        if !carry && index - skip >= 2 {
            break;
        }
    }
}

fn carrying(a: u64, b: u64, carry: bool) -> (u64, bool) {
    let (sum, first) = a.overflowing_add(b);
    let (sum, second) = sum.overflowing_add(carry as u64);
    (sum, first | second)
}

fn borrowing(a: u64, b: u64, borrow: bool) -> (u64, bool) {
    let (difference, first) = a.overflowing_sub(b);
    let (difference, second) = difference.overflowing_sub(borrow as u64);
    (difference, first | second)
}

/// The square of a magnitude, as its low and high half.
pub fn square(magnitude: u128) -> (u128, u128) {
    let (low, high) = (magnitude as u64 as u128, magnitude >> 64);
    let cross = low * high; // counts twice
    let (sum, carry) = (low * low).overflowing_add(cross << 65);
    (sum, high * high + (cross >> 63) + carry as u128)
}

/// Mantissa and exponent of a finite float's magnitude: m × 2^e.
#[inline]
pub fn split(value: f64) -> (u64, i32) {
    let bits = value.to_bits();
    let (exponent, fraction) = ((bits >> 52 & 0x7ff) as i32, bits & ((1 << 52) - 1));
    if exponent == 0 { (fraction, -1074) } else { (fraction | 1 << 52, exponent - 1075) }
}

/// A natural number, lowest word first, without zeros at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Natural(Vec<u64>);

impl Natural {
    pub fn new(mut words: Vec<u64>) -> Natural {
        while words.last() == Some(&0) {
            words.pop();
        }
        Natural(words)
    }

    pub fn from_u128(value: u128) -> Natural {
        Natural::new(vec![value as u64, (value >> 64) as u64])
    }

    /// The sign and the magnitude of a number in two's complement.
    pub fn magnitude(words: &[u64]) -> (bool, Natural) {
        let negative = words.last().is_some_and(|top| *top >> 63 == 1);
        let mut words = words.to_vec();
        if negative {
            let mut carry = true;
            for word in &mut words {
                (*word, carry) = (!*word).overflowing_add(carry as u64);
            }
        }
        (negative, Natural::new(words))
    }

    pub fn words(&self) -> &[u64] {
        &self.0
    }

    pub fn is_zero(&self) -> bool {
        self.0.is_empty()
    }

    pub fn to_u128(&self) -> Option<u128> {
        match self.0[..] {
            [] => Some(0),
            [low] => Some(low as u128),
            [low, high] => Some((high as u128) << 64 | low as u128),
            _ => None,
        }
    }

    fn bits(&self) -> i32 {
        self.0.last().map_or(0, |top| self.0.len() as i32 * 64 - top.leading_zeros() as i32)
    }

    /// The odd factor, and how many factors of two were taken out.
    pub fn odd(&self) -> (Natural, u32) {
        let skip = self.0.iter().take_while(|word| **word == 0).count();
        let Some(lowest) = self.0.get(skip) else { return (self.clone(), 0) };
        let bits = lowest.trailing_zeros();
        let words = &self.0[skip..];
        let above = |index: usize| words.get(index + 1).copied().unwrap_or(0);
        let moved = words.iter().enumerate().map(|(index, word)| match bits {
            0 => *word,
            _ => word >> bits | above(index) << (64 - bits),
        });
        (Natural::new(moved.collect()), skip as u32 * 64 + bits)
    }

    pub fn times(&self, other: &Natural) -> Natural {
        let mut words = vec![0; self.0.len() + other.0.len()];
        for (i, a) in self.0.iter().enumerate() {
            let mut carry = 0u128;
            for (j, b) in other.0.iter().enumerate() {
                let sum = *a as u128 * *b as u128 + words[i + j] as u128 + carry;
                words[i + j] = sum as u64;
                carry = sum >> 64;
            }
            words[i + other.0.len()] = carry as u64;
        }
        Natural::new(words)
    }

    /// The difference; `other` must not be larger.
    pub fn minus(&self, other: &Natural) -> Natural {
        let mut words = self.0.clone();
        let mut borrow = false;
        for (index, word) in words.iter_mut().enumerate() {
            let part = other.0.get(index).copied().unwrap_or(0);
            (*word, borrow) = borrowing(*word, part, borrow);
        }
        Natural::new(words)
    }

    pub fn shifted(&self, bits: u32) -> Natural {
        let mut words = vec![0; bits as usize / 64];
        let mut carry = 0;
        for word in &self.0 {
            words.push(word << (bits % 64) | carry);
            carry = if bits.is_multiple_of(64) { 0 } else { word >> (64 - bits % 64) };
        }
        words.push(carry);
        Natural::new(words)
    }
}

impl Ord for Natural {
    fn cmp(&self, other: &Natural) -> Ordering {
        self.0.len().cmp(&other.0.len()).then_with(|| self.0.iter().rev().cmp(other.0.iter().rev()))
    }
}

impl PartialOrd for Natural {
    fn partial_cmp(&self, other: &Natural) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// numerator ÷ denominator × 2^exponent.
pub fn ratio(numerator: &Natural, denominator: &Natural, exponent: i32) -> f64 {
    let (quotient, shift, inexact) = quotient(numerator, denominator, 64, false);
    round(quotient, exponent + shift, inexact)
}

/// high ÷ denominator × 2^exponent, where `inexact` stands for less than one more in the numerator.
pub fn divide(high: u128, exponent: i32, inexact: bool, denominator: u64) -> f64 {
    if high == 0 {
        return 0.0;
    }
    // At least 64 bits of quotient remain: all that rounding needs.
    let shift = high.leading_zeros();
    let (quotient, rest) = ((high << shift) / denominator as u128, (high << shift) % denominator as u128);
    round(quotient, exponent - shift as i32, inexact || rest != 0)
}

/// The root of numerator ÷ denominator × 2^exponent; the exponent must be even.
pub fn ratio_root(numerator: &Natural, denominator: &Natural, exponent: i32) -> f64 {
    let (quotient, shift, inexact) = quotient(numerator, denominator, 126, true);
    let root = quotient.isqrt();
    round(root, (exponent + shift) / 2, inexact || root * root != quotient)
}

/// A quotient of at least so many bits (at most 128), its power of two, and whether a rest was dropped.
fn quotient(numerator: &Natural, denominator: &Natural, bits: i32, even: bool) -> (u128, i32, bool) {
    let mut shift = bits + denominator.bits() - numerator.bits();
    shift += (even && shift % 2 != 0) as i32;
    let (mut rest, divisor) = match shift {
        0.. => (numerator.shifted(shift as u32), denominator.clone()),
        _ => (numerator.clone(), denominator.shifted(-shift as u32)),
    };
    if let (Some(a), Some(b)) = (rest.to_u128(), divisor.to_u128()) {
        return (a / b, -shift, a % b != 0);
    }
    if let [divisor] = divisor.0[..] {
        return divide_by_word(&rest.0, divisor, -shift);
    }
    let mut quotient = 0u128;
    for bit in (0..=bits as u32 + 1).rev() {
        let part = divisor.shifted(bit);
        if part <= rest {
            rest = rest.minus(&part);
            quotient |= 1 << bit;
        }
    }
    (quotient, -shift, !rest.is_zero())
}

/// Long division; the caller knows that the quotient has at most 128 bits.
fn divide_by_word(words: &[u64], divisor: u64, exponent: i32) -> (u128, i32, bool) {
    let (mut quotient, mut rest) = (0u128, 0u128);
    for word in words.iter().rev() {
        let part = rest << 64 | *word as u128;
        quotient = (quotient << 64) | (part / divisor as u128);
        rest = part % divisor as u128;
    }
    (quotient, exponent, rest != 0)
}

/// value × 2^exponent, and a little more if `inexact`, to the nearest float, ties to even.
pub fn round(value: u128, exponent: i32, inexact: bool) -> f64 {
    let bits = 128 - value.leading_zeros() as i32;
    let lowest = (bits + exponent - 53).max(-1074);
    let drop = lowest - exponent;
    if drop <= 0 {
        return scale(value as f64, exponent);
    }
    if drop > 127 {
        return 0.0; // far below half of the smallest float
    }
    let (kept, rest, half) = (value >> drop, value & ((1 << drop) - 1), 1u128 << (drop - 1));
    let up = rest > half || (rest == half && (inexact || kept & 1 == 1));
    scale((kept + up as u128) as f64, lowest)
}

/// An integer of at most 53 bits times a power of two, where the result needs no rounding.
fn scale(value: f64, exponent: i32) -> f64 {
    match exponent {
        1024.. => value * f64::INFINITY,
        -1022.. => value * power(exponent),
        _ => value * power(-1022) * power(exponent + 1022),
    }
}

fn power(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}
