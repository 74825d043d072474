//! One key's events: records in order of time, equal times in order of arrival, in a ring that grows as needed.
//!
//! A place in the ring is a number that rises by one with each event and wraps around; it stays the same while
//! older events are freed.

use super::prefetch::prefetch;

const GROWTH_MIN: usize = 2;

#[derive(Default, Clone, Debug)]
pub struct Ring {
    words: Box<[u64]>,
    /// In records; kept, because a division by the stride would cost more than a look at an event.
    capacity: u32,
    start: u32,
    len: u32,
    /// The place of the oldest event.
    pub first: u32,
}

impl Ring {
    /// A full ring of equal records, to be overwritten.
    pub fn filled(len: u32, record: &[u64]) -> Ring {
        let capacity = roomy(len as usize, record.len());
        let words = record.repeat(capacity as usize).into();
        Ring { words, capacity, start: 0, len, first: 0 }
    }

    /// The records of a ring that was made full and has not moved.
    pub fn records_mut(&mut self, stride: usize) -> impl Iterator<Item = &mut [u64]> {
        assert_eq!(self.start, 0, "only a new ring lies in order");
        self.words.chunks_exact_mut(stride).take(self.len as usize)
    }

    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// The place after the newest event.
    pub fn end(&self) -> u32 {
        self.first.wrapping_add(self.len)
    }

    pub fn bytes(&self) -> usize {
        self.words.len() * 8
    }

    #[inline]
    pub fn record(&self, place: u32, stride: usize) -> &[u64] {
        let at = self.at(place, stride);
        &self.words[at..at + stride]
    }

    pub fn record_mut(&mut self, place: u32, stride: usize) -> &mut [u64] {
        let at = self.at(place, stride);
        &mut self.words[at..at + stride]
    }

    /// Asks for a record's line; any place will do.
    #[inline]
    pub fn prefetch(&self, place: u32, stride: usize) {
        if place.wrapping_sub(self.first) < self.len {
            let at = self.at(place, stride);
            // A window's edge is about to move on: the next record may lie in the next line.
            prefetch(&self.words[at]);
            prefetch(&self.words[(at + 2 * stride).min(self.words.len() - 1)]);
        }
    }

    #[inline]
    pub fn time(&self, place: u32, stride: usize) -> i64 {
        self.words[self.at(place, stride)] as i64
    }

    #[inline]
    fn at(&self, place: u32, stride: usize) -> usize {
        debug_assert!(place.wrapping_sub(self.first) < self.len);
        let slot = self.start + place.wrapping_sub(self.first);
        (if slot >= self.capacity { slot - self.capacity } else { slot }) as usize * stride
    }

    /// Inserts a record at a place between `first` and `end`; those from there on move up by one.
    pub fn insert(&mut self, place: u32, record: &[u64]) {
        let stride = record.len();
        if self.len == self.capacity {
            self.resize(self.len as usize + (self.len as usize / 8).max(GROWTH_MIN), stride);
        }
        self.len += 1;
        let mut gap = self.end().wrapping_sub(1);
        while gap != place {
            let (from, to) = (self.at(gap.wrapping_sub(1), stride), self.at(gap, stride));
            self.words.copy_within(from..from + stride, to);
            gap = gap.wrapping_sub(1);
        }
        let at = self.at(place, stride);
        self.words[at..at + stride].copy_from_slice(record);
    }

    /// Frees the oldest event.
    pub fn evict(&mut self) {
        self.start = if self.start + 1 == self.capacity { 0 } else { self.start + 1 };
        self.first = self.first.wrapping_add(1);
        self.len -= 1;
    }

    /// Gives back memory when most of it is unused.
    pub fn shrink(&mut self, stride: usize) {
        if self.len == 0 {
            self.words = Box::default();
            (self.capacity, self.start) = (0, 0);
        } else if self.capacity > 8 && self.len < self.capacity / 2 {
            self.resize(self.len as usize + self.len as usize / 8 + 1, stride);
        }
    }

    /// Makes room for so many records, or a few more.
    fn resize(&mut self, records: usize, stride: usize) {
        let capacity = roomy(records, stride);
        let mut words = Vec::with_capacity(capacity as usize * stride);
        for offset in 0..self.len {
            words.extend_from_slice(self.record(self.first.wrapping_add(offset), stride));
        }
        words.resize(capacity as usize * stride, 0);
        self.words = words.into_boxed_slice();
        (self.capacity, self.start) = (capacity, 0);
    }
}

/// So many records, and as many more as fit into what the allocator gives for them in any case: it rounds up to 4, 5,
/// 6 or 7 times a power of two, which else would waste a ninth of the memory, and count nowhere.
fn roomy(records: usize, stride: usize) -> u32 {
    let words = records * stride;
    let step = words.next_power_of_two() / 8;
    (words.next_multiple_of(step.max(2)) / stride) as u32
}

#[cfg(test)]
mod tests {
    use super::roomy;

    #[test]
    fn a_ring_fills_what_the_allocator_gives_for_it() {
        let words = |records| roomy(records, 2) * 2;
        assert_eq!(
            [0, 1, 2, 3, 4, 5, 7, 9, 33, 78, 97].map(words),
            [0, 2, 4, 6, 8, 10, 14, 20, 80, 160, 224]
        );
        for (records, stride) in (0..300).flat_map(|records| (2..9).map(move |stride| (records, stride))) {
            let capacity = roomy(records, stride) as usize;
            assert!(capacity >= records && (capacity - records) * stride <= records * stride / 4 + 2);
        }
    }
}
