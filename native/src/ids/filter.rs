//! A filter that says of most ids that were never seen that they are new, without touching the disk.
//!
//! A blocked Bloom filter (Putze, Sanders, Singler 2007): an id owns one line of 64 bytes, one cache miss, and in
//! each of the line's eight words one bit. The line follows the order of the hashes, so that a generation, which is
//! written in that order, fills its filter from front to back and never jumps about in it.

/// Two bytes of memory for an id. At 16 bits one new id in a thousand passes; half as many bits would let through ten
/// times as many, and each of those costs a read from disk.
const IDS_PER_LINE: u64 = 32;
const WORDS: usize = 8;
pub(super) const LINE_BYTES: usize = 8 * WORDS;

pub(super) struct Filter {
    lines: Vec<Line>,
}

/// Aligned, so that a line is in one cache line and not in two.
#[derive(Clone)]
#[repr(align(64))]
struct Line([u64; WORDS]);

impl Filter {
    pub(super) fn for_ids(ids: u64) -> Filter {
        Filter { lines: vec![Line([0; WORDS]); lines_for(ids) as usize] }
    }

    /// A filter still without its lines: `extend` brings them.
    pub(super) fn with_capacity(lines: u64) -> Filter {
        Filter { lines: Vec::with_capacity(lines as usize) }
    }

    /// Append lines as `bytes` gave them.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.lines.extend(bytes.chunks_exact(LINE_BYTES).map(Line::from_bytes));
    }

    pub(super) fn insert(&mut self, hash: u64) {
        let line = self.line_of(hash);
        for (word, bit) in self.lines[line].0.iter_mut().zip(bits(hash)) {
            *word |= 1 << bit;
        }
    }

    /// False: the hash was never inserted. True: it was, or one in a thousand times it was not.
    #[inline]
    pub(super) fn may_hold(&self, hash: u64) -> bool {
        let line = &self.lines[self.line_of(hash)];
        // No early end: eight steps without a branch cost less than one that is mispredicted.
        line.0.iter().zip(bits(hash)).fold(1, |all, (word, bit)| all & (word >> bit)) == 1
    }

    /// Bring the hash's line into the cache; the value is of no use but to the optimiser.
    #[inline]
    pub(super) fn touch(&self, hash: u64) -> u64 {
        self.lines[self.line_of(hash)].0[0]
    }

    pub(super) fn lines(&self) -> u64 {
        self.lines.len() as u64
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        (self.lines.capacity() * LINE_BYTES) as u64
    }

    pub(super) fn bytes(&self) -> impl Iterator<Item = [u8; LINE_BYTES]> {
        self.lines.iter().map(Line::to_bytes)
    }

    #[inline]
    fn line_of(&self, hash: u64) -> usize {
        ((hash as u128 * self.lines.len() as u128) >> 64) as usize
    }
}

impl Line {
    fn from_bytes(bytes: &[u8]) -> Line {
        let mut line = Line([0; WORDS]);
        for (word, bytes) in line.0.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        line
    }

    fn to_bytes(&self) -> [u8; LINE_BYTES] {
        let mut bytes = [0; LINE_BYTES];
        for (word, bytes) in self.0.iter().zip(bytes.as_chunks_mut::<8>().0) {
            *bytes = word.to_le_bytes();
        }
        bytes
    }
}

pub(super) fn lines_for(ids: u64) -> u64 {
    ids.div_ceil(IDS_PER_LINE).max(1)
}

/// One bit in each word of the line. The ids of a line have their hashes' upper bits in common, so the lower ones are
/// spread over the product's upper ones first.
#[inline]
fn bits(hash: u64) -> [u32; WORDS] {
    let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    std::array::from_fn(|word| (mixed >> (16 + 6 * word)) as u32 & 63)
}

#[cfg(test)]
mod tests {
    use super::*;
    use xxhash_rust::xxh3::xxh3_64;

    fn hash(number: u64) -> u64 {
        xxh3_64(&number.to_le_bytes())
    }

    fn filter_of(ids: u64) -> Filter {
        let mut filter = Filter::for_ids(ids);
        (0..ids).for_each(|number| filter.insert(hash(number)));
        filter
    }

    #[test]
    fn what_was_inserted_is_always_held() {
        for ids in [0, 1, 31, 33, 1000, 100_000] {
            let filter = filter_of(ids);
            assert!((0..ids).all(|number| filter.may_hold(hash(number))));
        }
    }

    #[test]
    fn one_new_id_in_a_thousand_passes() {
        for ids in [100_000, 4_000_000] {
            let filter = filter_of(ids);
            let passed = (ids..ids + 1_000_000).filter(|number| filter.may_hold(hash(*number))).count();
            assert!(passed < 1_100, "{passed} of a million passed");
        }
    }

    #[test]
    fn it_takes_two_bytes_for_an_id() {
        assert_eq!(filter_of(1_000_000).memory_bytes(), 2_000_000);
    }

    #[test]
    fn its_bytes_give_the_same_filter() {
        let filter = filter_of(1000);
        let mut copy = Filter::with_capacity(filter.lines());
        filter.bytes().for_each(|line| copy.extend(&line));
        assert!((0..100_000).all(|number| filter.may_hold(hash(number)) == copy.may_hold(hash(number))));
    }
}
