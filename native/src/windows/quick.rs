//! Tallies and reads that a few words settle. Most are of this kind, and most of the time goes into them: each event
//! enters and leaves every window.

use super::layout::{Layout, Number, Slot, Tally};
use super::plan::Aggregate;
use super::sums::add_narrow;
use super::values::NULL_NARROW;

/// The word of a record that holds its first flags.
const FLAGS: usize = 1;

/// A count of the events that pass, and perhaps the sum of a narrow number.
#[derive(Clone, Copy, Debug)]
pub struct Quick {
    /// The flags that must be set.
    mask: u64,
    /// The word that must not be null.
    narrow: Option<usize>,
    count: usize,
    /// The word of the value, and that of the sum.
    sum: Option<(usize, usize)>,
}

impl Quick {
    pub fn of(tally: &Tally) -> Option<Quick> {
        let objects = [tally.squares, tally.min, tally.max, tally.unique];
        let simple = objects.iter().all(Option::is_none) && tally.number == Number::Narrow;
        let (value, narrow, bit) = match tally.of.slot {
            None => (None, None, None),
            Some(Slot::Int { word, bit }) => (Some(word), None, Some(bit)),
            Some(Slot::Narrow { word }) => (Some(word), Some(word), None),
            Some(Slot::Bool { bit }) => (None, None, Some(bit)),
            Some(Slot::Float { .. } | Slot::Wide { .. } | Slot::Text { .. }) => return None,
        };
        let bits = [bit, tally.of.filter];
        let near = bits.iter().flatten().all(|bit| *bit < u64::BITS as usize);
        (simple && near).then(|| Quick {
            mask: bits.iter().flatten().fold(0, |mask, bit| mask | 1 << bit),
            narrow,
            count: tally.count,
            sum: value.zip(tally.sum),
        })
    }

    /// Takes an event in, or away.
    #[inline(always)]
    pub fn pass(&self, record: &[u64], words: &mut [u64], away: bool) {
        if self.mask != 0 && record[FLAGS] & self.mask != self.mask {
            return;
        }
        if self.narrow.is_some_and(|word| record[word] as i64 == NULL_NARROW) {
            return;
        }
        words[self.count] = words[self.count].wrapping_add(if away { u64::MAX } else { 1 });
        if let Some((value, sum)) = self.sum {
            add_narrow(words, sum, record[value] as i64 as i128, away);
        }
    }
}

/// How a read is answered.
#[derive(Clone, Copy, Debug)]
pub enum Reading {
    /// The distance of a window's two places, which are in this word.
    Places(usize),
    Count(usize),
    Mean {
        sum: usize,
        count: usize,
        unit: u64,
    },
    /// By a look at more than a key's words.
    Other,
}

impl Reading {
    pub fn of(layout: &Layout, aggregate: Aggregate, window: usize, tally: Option<&Tally>) -> Reading {
        match (aggregate, tally) {
            (Aggregate::Count, Some(tally)) => Reading::Count(tally.count),
            (Aggregate::Count, None) if layout.windows[window].length.is_some() => {
                Reading::Places(layout.cursors + window)
            }
            (Aggregate::Mean, Some(Tally { number: Number::Narrow, sum: Some(sum), count, of, .. })) => {
                Reading::Mean { sum: *sum, count: *count, unit: 10u64.pow(of.kind.scale()) }
            }
            _ => Reading::Other,
        }
    }
}

/// The mean of a narrow number, if its sum and its divisor are exact as floats: one division rounds once.
#[inline(always)]
pub fn mean(words: &[u64], sum: usize, count: usize, unit: u64) -> Option<f64> {
    let (low, high) = (words[sum] as i64, words[sum + 1] as i64);
    let divisor = unit.checked_mul(words[count])?;
    let exact = high == low >> 63 && low.unsigned_abs() < 1 << 53 && (1..1 << 53).contains(&divisor);
    exact.then(|| low as f64 / divisor as f64)
}
