//! Commits as they come in and as they are found: rows of one or several topics that were written at once.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_buffer::Buffer;

use super::catalog::{Catalog, Changes, StoredSchema};
use super::columns::{self, Decoded};
use super::frame::{self, u16_at, u32_at, u64_at};
use super::place::Address;
use super::segment;
use super::walk::Frame;
use crate::error::{Error, Result};

/// ```text
/// 0 schema u32   4 rows u32   8 base offset u64   16 before i64   24 origin u16   26 flags u16   28 bytes u32
/// ```
const SECTION_HEADER_BYTES: usize = 32;
const MARKED: u16 = 1;

/// Rows of one topic, to be appended.
#[derive(Clone, Debug)]
pub struct Section {
    /// What `define` returned for the topic.
    pub schema: u32,
    /// Where the rows came from, in the caller's numbering.
    pub origin: u16,
    /// The caller's watermark before these rows.
    pub before: i64,
    /// A byte of the caller's for each row.
    pub marks: Option<Vec<u8>>,
    pub batch: RecordBatch,
}

/// One atomic append as it was found.
#[derive(Clone, Debug)]
pub struct Commit {
    pub sequence: u64,
    pub epoch: u32,
    pub time_us: i64,
    pub address: Address,
    /// The catalog changed with this commit: a schema was defined, or a note written.
    pub changed: bool,
    pub sections: Vec<StoredSection>,
}

impl Commit {
    /// The sections of a topic, with their places.
    pub fn sections_of<'a>(&'a self, topic: &'a str) -> impl Iterator<Item = (usize, &'a StoredSection)> {
        self.sections.iter().enumerate().filter(move |(_, section)| *section.topic == *topic)
    }
}

/// Rows of one topic. The columns are decoded when they are asked for.
#[derive(Clone, Debug)]
pub struct StoredSection {
    pub schema: u32,
    pub topic: Arc<str>,
    pub base_offset: u64,
    pub rows: u32,
    pub origin: u16,
    pub before: i64,
    pub marks: Option<Buffer>,
    columns: Buffer,
    stored: Arc<StoredSchema>,
    segment: u64,
    offset: u64,
}

impl StoredSection {
    pub fn batch(&self) -> Result<RecordBatch> {
        self.decode().map_err(|fault| segment::damaged(&segment::path(self.segment), self.offset, &fault))
    }

    pub(super) fn decode(&self) -> Decoded<RecordBatch> {
        let StoredSchema { schema, arrow, .. } = self.stored.as_ref();
        columns::unpack(&self.columns, self.rows as usize, schema, arrow)
    }
}

/// Refuse a section that could not be read back.
pub(super) fn check(section: &Section, stored: &StoredSchema) -> Result<()> {
    let rows = section.batch.num_rows();
    if section.marks.as_ref().is_some_and(|marks| marks.len() != rows) {
        return Err(Error::invalid(format!("there must be one mark for each of the {rows} rows")));
    }
    if rows > i32::MAX as usize {
        return Err(Error::invalid(format!("{rows} rows are too many for one section")));
    }
    columns::check(&section.batch, &stored.schema)
}

pub(super) fn encode(section: &Section, stored: &StoredSchema, base_offset: u64, out: &mut Vec<u8>) {
    let start = out.len();
    let flags = if section.marks.is_some() { MARKED } else { 0 };
    out.extend_from_slice(&section.schema.to_le_bytes());
    out.extend_from_slice(&(section.batch.num_rows() as u32).to_le_bytes());
    out.extend_from_slice(&base_offset.to_le_bytes());
    out.extend_from_slice(&section.before.to_le_bytes());
    out.extend_from_slice(&section.origin.to_le_bytes());
    out.extend_from_slice(&flags.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(section.marks.as_deref().unwrap_or_default());
    columns::pack(&section.batch, &stored.schema, out);
    let bytes = (out.len() - start - SECTION_HEADER_BYTES) as u32;
    out[start + 28..start + 32].copy_from_slice(&bytes.to_le_bytes());
}

/// The next commit in order, with what it does to the catalog.
pub(super) fn advance(found: &Frame, segment: &segment::Header, catalog: &mut Catalog) -> Result<Commit> {
    let commit = advance_catalog(found, catalog).and_then(|sections| {
        let commit = read_sections(found, segment, sections, catalog)?;
        for section in &commit.sections {
            catalog.advance(&section.topic, section.base_offset, section.rows.into())?;
        }
        Ok(commit)
    });
    commit.map_err(|fault| segment::damaged(&segment::path(segment.first_sequence), found.offset, &fault))
}

/// A commit by itself; the catalog is a later one.
pub(super) fn read(found: &Frame, segment: &segment::Header, catalog: &Catalog) -> Result<Commit> {
    split(found)
        .and_then(|(_, sections)| read_sections(found, segment, sections, catalog))
        .map_err(|fault| segment::damaged(&segment::path(segment.first_sequence), found.offset, &fault))
}

/// Apply what the commit says of the catalog; returns its sections' bytes.
pub(super) fn advance_catalog(found: &Frame, catalog: &mut Catalog) -> Decoded<Buffer> {
    let (changes, sections) = split(found)?;
    match found.header.flags {
        flags if flags & frame::CATALOG != 0 => *catalog = Catalog::from_bytes(&changes)?,
        flags if flags & frame::CHANGES != 0 => catalog.apply(&Changes::from_bytes(&changes)?)?,
        _ => {}
    }
    Ok(sections)
}

/// A commit's payload in two: what concerns the catalog, and the sections.
fn split(found: &Frame) -> Decoded<(Buffer, Buffer)> {
    let payload = frame::payload(&found.header, &found.bytes)?;
    let (start, end) = match found.header.flags {
        flags if flags & frame::CATALOG != 0 => (0, payload.len()),
        flags if flags & frame::CHANGES != 0 && payload.len() >= 4 => (4, 4 + u32_at(&payload, 0) as usize),
        flags if flags & frame::CHANGES != 0 => (0, usize::MAX),
        _ => (0, 0),
    };
    match end <= payload.len() {
        true => Ok((payload.slice_with_length(start, end - start), payload.slice(end))),
        false => Err("the commit ends within its changes of the catalog".into()),
    }
}

/// The commit whose sections these are.
pub(super) fn read_sections(
    found: &Frame,
    segment: &segment::Header,
    mut rest: Buffer,
    catalog: &Catalog,
) -> Decoded<Commit> {
    let mut sections = Vec::with_capacity(found.header.sections.into());
    for _ in 0..found.header.sections {
        sections.push(read_section(found.offset, segment.first_sequence, &mut rest, catalog)?);
    }
    if !rest.is_empty() {
        return Err(format!("{} bytes follow the last section", rest.len()));
    }
    let frame::Header { sequence, epoch, time_us, flags, .. } = found.header;
    let address = Address::new(segment.number, found.offset);
    Ok(Commit { sequence, epoch, time_us, address, changed: flags & frame::CHANGES != 0, sections })
}

fn read_section(offset: u64, segment: u64, rest: &mut Buffer, catalog: &Catalog) -> Decoded<StoredSection> {
    let header: [u8; SECTION_HEADER_BYTES] = match rest.get(..SECTION_HEADER_BYTES) {
        Some(header) => header.try_into().expect("it has this length"),
        None => return Err("the commit ends within a section's header".into()),
    };
    let schema = u32_at(&header, 0);
    let rows = u32_at(&header, 4);
    let marks = if u16_at(&header, 26) & MARKED != 0 { rows as usize } else { 0 };
    let bytes = u32_at(&header, 28) as usize;
    if bytes > rest.len() - SECTION_HEADER_BYTES || marks > bytes {
        return Err("the commit ends within a section".into());
    }
    let body = rest.slice_with_length(SECTION_HEADER_BYTES, bytes);
    rest.advance(SECTION_HEADER_BYTES + bytes);
    let stored = catalog.schema(schema).ok_or_else(|| format!("the catalog has no schema {schema}"))?;
    Ok(StoredSection {
        schema,
        topic: stored.topic.clone(),
        base_offset: u64_at(&header, 8),
        rows,
        origin: u16_at(&header, 24),
        before: u64_at(&header, 16) as i64,
        marks: (marks > 0).then(|| body.slice_with_length(0, marks)),
        columns: body.slice(marks),
        stored: stored.clone(),
        segment,
        offset,
    })
}
