//! What can be set about a log.

use super::place::SEGMENT_BYTES_MAX;
use crate::error::{Error, Result};

const SEGMENT_BYTES_MIN: u64 = 4096;

#[derive(Clone, Debug)]
pub struct Settings {
    /// The length of a new segment: 4 KiB to 512 MiB.
    pub segment_bytes: u64,
    /// Commits with more bytes than this are compressed as a whole, where it saves a tenth.
    pub compress_above: usize,
    /// How long a commit is kept at least; `None` keeps all.
    pub retention_us: Option<i64>,
    /// How much space the log may take; `None` is without limit.
    pub retention_bytes: Option<u64>,
    /// Allocate the next segment in a thread of its own; a simulation does it in line.
    pub background: bool,
    /// False only as a test's negative control: such a log must lose what it acknowledged.
    pub sync: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            segment_bytes: 64 << 20,
            compress_above: 256 << 10,
            retention_us: None,
            retention_bytes: None,
            background: true,
            sync: true,
        }
    }
}

impl Settings {
    pub(super) fn check(&self) -> Result<()> {
        let bytes = self.segment_bytes;
        match (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&bytes) && bytes.is_multiple_of(8) {
            true => Ok(()),
            false => Err(Error::invalid(format!(
                "a segment of {bytes} bytes is not possible: {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX}, a multiple of 8"
            ))),
        }
    }
}
