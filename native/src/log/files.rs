//! The segments that commits are looked up in.

use std::sync::{Arc, Mutex, PoisonError};

use super::segment;
use crate::disk::{Disk, File, Mode};
use crate::error::Result;

const FILES_OPEN_MAX: usize = 16;

/// The segments that were read last, open, with their headers.
pub(super) struct Files {
    disk: Arc<dyn Disk>,
    open: Mutex<Vec<OpenSegment>>,
}

/// Its first sequence, its file, its header.
type OpenSegment = (u64, Arc<dyn File>, segment::Header);

impl Files {
    pub fn new(disk: Arc<dyn Disk>) -> Files {
        Files { disk, open: Mutex::default() }
    }

    pub fn get(&self, first_sequence: u64) -> Result<(Arc<dyn File>, segment::Header)> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = open.iter().position(|(known, ..)| *known == first_sequence) {
            open[..=index].rotate_right(1);
        } else {
            let file = segment::open(self.disk.as_ref(), first_sequence, Mode::Read)?;
            let header = segment::read_header(file.as_ref(), first_sequence)?;
            open.truncate(FILES_OPEN_MAX - 1);
            open.insert(0, (first_sequence, file, header));
        }
        Ok((open[0].1.clone(), open[0].2))
    }

    pub fn forget(&self, first_sequence: u64) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(known, ..)| *known != first_sequence);
    }
}
