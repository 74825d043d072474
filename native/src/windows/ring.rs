//! One key's events: records in order of time, equal times in order of arrival, in a ring that grows as needed.
//!
//! A place in the ring is a number that rises by one with each event and wraps around; it stays the same while
//! older events are freed.

const GROWTH_MIN: usize = 2;

#[derive(Default, Clone, Debug)]
pub struct Ring {
    words: Box<[u64]>,
    start: u32,
    len: u32,
    /// The place of the oldest event.
    pub first: u32,
}

impl Ring {
    /// A full ring of equal records, to be overwritten.
    pub fn filled(len: u32, record: &[u64]) -> Ring {
        Ring { words: record.repeat(len as usize).into(), start: 0, len, first: 0 }
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

    /// Loads a record's line into the cache; any place will do.
    #[inline]
    pub fn touch(&self, place: u32, stride: usize) -> u64 {
        let inside = place.wrapping_sub(self.first) < self.len;
        if inside { self.words[self.at(place, stride)] } else { 0 }
    }

    #[inline]
    pub fn time(&self, place: u32, stride: usize) -> i64 {
        self.words[self.at(place, stride)] as i64
    }

    #[inline]
    fn at(&self, place: u32, stride: usize) -> usize {
        debug_assert!(place.wrapping_sub(self.first) < self.len);
        let capacity = self.words.len() / stride;
        let slot = (self.start + place.wrapping_sub(self.first)) as usize;
        (if slot >= capacity { slot - capacity } else { slot }) * stride
    }

    /// Inserts a record at a place between `first` and `end`; those from there on move up by one.
    pub fn insert(&mut self, place: u32, record: &[u64]) {
        let stride = record.len();
        if self.len() * stride == self.words.len() {
            self.resize(self.grown(stride), stride);
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
    pub fn evict(&mut self, stride: usize) {
        let capacity = self.words.len() / stride;
        self.start = if self.start as usize + 1 == capacity { 0 } else { self.start + 1 };
        self.first = self.first.wrapping_add(1);
        self.len -= 1;
    }

    /// Gives back memory when most of it is unused.
    pub fn shrink(&mut self, stride: usize) {
        let capacity = self.words.len() / stride;
        if self.len == 0 {
            self.words = Box::default();
            self.start = 0;
        } else if capacity > 8 && self.len() * 2 < capacity {
            self.resize(self.len() + self.len() / 8 + 1, stride);
        }
    }

    fn grown(&self, stride: usize) -> usize {
        let capacity = self.words.len() / stride;
        (capacity + capacity / 4).max(capacity + GROWTH_MIN)
    }

    fn resize(&mut self, capacity: usize, stride: usize) {
        let mut words = Vec::with_capacity(capacity * stride);
        for offset in 0..self.len {
            words.extend_from_slice(self.record(self.first.wrapping_add(offset), stride));
        }
        words.resize(capacity * stride, 0);
        self.words = words.into_boxed_slice();
        self.start = 0;
    }
}
