//! How a segment begins.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::catalog::Catalog;
use super::frame::{self, Draft};
use super::segment::{self, FOLDER};
use super::spare;
use super::walk::Link;
use crate::disk::{Disk, File};
use crate::error::{Error, Result};

/// A segment, and where in it the log goes on.
pub(super) struct Begun {
    pub file: Arc<dyn File>,
    pub segment: segment::Header,
    /// Where the last commit begins.
    pub last_offset: u64,
    /// Where the next commit goes.
    pub offset: u64,
    pub link: Link,
}

/// Make allocated space the next segment: header and catalog first, then the name, each on disk before the next step.
pub(super) fn begin_segment(
    disk: &dyn Disk,
    file: Arc<dyn File>,
    bytes: u64,
    number: u32,
    after: Link,
    catalog: &Catalog,
    now_us: i64,
) -> Result<Begun> {
    let first_sequence = after.sequence + 1;
    let segment = segment::Header {
        salt: salt(after.epoch, first_sequence, now_us),
        number,
        first_sequence,
        previous: after.checksum,
        epoch: after.epoch,
        time_us: now_us,
        bytes,
    };
    let mut draft = Draft::default();
    draft.begin().extend_from_slice(&catalog.to_bytes());
    draft.finish(usize::MAX)?;
    let header = frame::Header {
        sequence: first_sequence,
        durable: after.sequence,
        time_us: now_us,
        previous: after.checksum,
        epoch: after.epoch,
        flags: frame::CATALOG,
        ..frame::Header::default()
    };
    let (frame, checksum) = draft.seal(header, segment.salt);
    let last_offset = segment::HEADER_BYTES as u64;
    let offset = last_offset + frame.len() as u64;
    let name = segment::path(first_sequence);
    file.write(0, &[&segment.to_bytes(), frame].concat())
        .and_then(|()| file.sync())
        .and_then(|()| disk.rename(spare::PATH, &name))
        .and_then(|()| disk.sync_folder(FOLDER))
        .map_err(|error| Error::io(format!("could not begin {name}"), error))?;
    let link = Link { sequence: first_sequence, checksum, epoch: after.epoch };
    Ok(Begun { file, segment, last_offset, offset, link })
}

/// Another one for each life of each segment, so that no old bytes fit in.
fn salt(epoch: u32, first_sequence: u64, now_us: i64) -> u32 {
    let mut bytes = [0; 20];
    bytes[0..4].copy_from_slice(&epoch.to_le_bytes());
    bytes[4..12].copy_from_slice(&first_sequence.to_le_bytes());
    bytes[12..20].copy_from_slice(&now_us.to_le_bytes());
    xxh3_64(&bytes) as u32
}
