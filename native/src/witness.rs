//! What other files of a data directory tell of its log: snapshots and files of ids are made of durable commits alone.

use crate::disk::Disk;
use crate::error::Result;
use crate::log::Witness;
use crate::{ids, snapshot};

/// The file that is of the newest commit; of none where there is no such file.
pub fn newest(disk: &dyn Disk) -> Result<Witness> {
    let files = [snapshot::newest_file(disk)?, ids::newest_file(disk)?];
    let newest = files.into_iter().flatten().max_by_key(|(sequence, _)| *sequence);
    Ok(newest.map(|(sequence, file)| Witness { sequence, file }).unwrap_or_default())
}
