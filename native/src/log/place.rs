//! Where a commit is: an address to look one up, a position to read on from.

use serde::{Deserialize, Serialize};

/// Frames begin at multiples of 8, so this many bits reach through the largest segment.
const OFFSET_BITS: u32 = 26;
pub(super) const SEGMENT_BYTES_MAX: u64 = 8 << OFFSET_BITS;
pub(super) const SEGMENTS_MAX: u32 = 1 << (48 - OFFSET_BITS);

/// A commit's place in 48 bits: the number of its segment, then its offset in eights. Rises with the order of commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Address(pub u64);

impl Address {
    pub(super) fn new(segment: u32, offset: u64) -> Address {
        debug_assert!(segment < SEGMENTS_MAX && offset < SEGMENT_BYTES_MAX && offset.is_multiple_of(8));
        Address((u64::from(segment) << OFFSET_BITS) | (offset / 8))
    }

    pub fn segment(self) -> u64 {
        self.0 >> OFFSET_BITS
    }

    pub fn offset(self) -> u64 {
        (self.0 & ((1 << OFFSET_BITS) - 1)) * 8
    }
}

/// The last commit that was taken in: reading goes on with the one after it.
///
/// The checksum makes sure that a position is used on the log it was taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The first sequence of the segment, which is its name.
    pub segment: u64,
    /// Where in the segment the commit's frame begins.
    pub offset: u64,
    pub sequence: u64,
    pub checksum: u32,
}
