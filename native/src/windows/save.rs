//! A store's saved form: columns, keys in sorted order, and nothing that depends on when it was freed or moved.
//!
//!     magic | header (JSON) | keys | events per key | times | filters | values of each column
//!
//! Only what a query to come can see is written, so equal content gives equal bytes.

use std::collections::HashMap;
use std::io::Write;

use serde::{Deserialize, Serialize};

use crate::error::Result;

use super::Store;
use super::base::{self, Part};
use super::change::Since;
use super::frame::{Section, write_section};
use super::keys::KeyRef;
use super::layout::{Layout, Slot};
use super::plan::StorePlan;
use super::ring::Ring;
use super::values::{NULL_WORD, flag};

pub const MAGIC: &[u8; 8] = b"penswin1";
pub const NULL_TEXT: u32 = u32::MAX;

#[derive(Serialize, Deserialize)]
pub struct Header {
    pub plan: StorePlan,
    pub evict_before: i64,
    pub span: i64,
    pub keys: u64,
    pub events: u64,
    pub parts: Vec<Part>,
    #[serde(default, skip_serializing_if = "Since::is_empty")]
    pub since: Since,
}

impl Header {
    /// Events up to this time had left every window.
    pub fn boundary(&self) -> i64 {
        self.evict_before.saturating_sub(self.span)
    }
}

/// One key's living events.
pub struct Living<'a> {
    pub key: KeyRef<'a>,
    pub shard: usize,
    pub slot: usize,
    pub ring: &'a Ring,
    pub first: u32,
    count: u32,
}

impl Living<'_> {
    pub fn records(&self, stride: usize) -> impl Iterator<Item = &[u64]> {
        (0..self.count).map(move |offset| self.ring.record(self.first.wrapping_add(offset), stride))
    }
}

impl Store {
    pub fn save(&self, out: &mut dyn Write) -> Result<()> {
        let living = self.living();
        let events: u64 = living.iter().map(|key| key.count as u64).sum();
        let parts = base::parts(&self.plan, &self.layout);
        let header = Header {
            plan: self.plan.clone(),
            evict_before: self.evict_before,
            span: self.layout.span,
            keys: living.len() as u64,
            events,
            parts,
            since: self.since.after(self.boundary()),
        };
        write_section(out, MAGIC)?;
        write_section(out, &serde_json::to_vec(&header).expect("a plan is JSON"))?;
        write_keys(out, &living)?;
        let mut counts = Section::begin(out, living.len() as u64 * 4)?;
        living.iter().try_for_each(|key| counts.put(&key.count.to_le_bytes()))?;
        counts.end()?;
        let writer = Writer { living: &living, layout: &self.layout, events };
        writer.words(out, 0)?;
        (0..self.plan.filters.len()).try_for_each(|bit| writer.bits(out, bit))?;
        self.layout.slots.iter().try_for_each(|slot| match *slot {
            Slot::Int { word, bit } => writer.bits(out, bit).and_then(|()| writer.words(out, word)),
            Slot::Float { word } | Slot::Narrow { word } => writer.words(out, word),
            Slot::Wide { word } => writer.words(out, word).and_then(|()| writer.words(out, word + 1)),
            Slot::Bool { bit } => writer.bits(out, bit).and_then(|()| writer.bits(out, bit + 1)),
            Slot::Text { word } => self.write_texts(out, &writer, word),
        })?;
        self.write_parts(out, &living, &header.parts)
    }

    pub(super) fn boundary(&self) -> i64 {
        self.evict_before.saturating_sub(self.layout.span)
    }

    pub(super) fn living(&self) -> Vec<Living<'_>> {
        let mut living = Vec::with_capacity(self.keys());
        for (index, shard) in self.shards.iter().enumerate() {
            living.extend(shard.living(&self.layout, self.boundary()).into_iter().map(|(slot, first)| {
                let ring = shard.ring(slot);
                let count = ring.end().wrapping_sub(first);
                Living { key: shard.key(slot), shard: index, slot, ring, first, count }
            }));
        }
        living.sort_unstable_by_key(|living| living.key);
        living
    }

    /// What was freed, for each part a text of bytes for each key.
    fn write_parts(&self, out: &mut dyn Write, living: &[Living], parts: &[Part]) -> Result<()> {
        let mut columns = vec![(Vec::new(), Vec::new()); parts.len()];
        let bounds = (self.boundary(), self.evict_before);
        for key in living.iter().filter(|_| !parts.is_empty()) {
            self.shards[key.shard].with_base(&self.layout, key.slot, bounds, |entity| {
                for (part, (lengths, bytes)) in parts.iter().zip(&mut columns) {
                    let start = bytes.len();
                    base::encode(entity, part, bytes);
                    lengths.extend(((bytes.len() - start) as u32).to_le_bytes());
                }
            });
        }
        columns.iter().try_for_each(|(lengths, bytes)| {
            write_section(out, lengths).and_then(|()| write_section(out, bytes))
        })
    }

    /// Ids in order of first appearance, then the texts that they stand for.
    fn write_texts(&self, out: &mut dyn Write, writer: &Writer, word: usize) -> Result<()> {
        let mut known: HashMap<&str, u32> = HashMap::new();
        let (mut lengths, mut bytes) = (Vec::new(), Vec::new());
        let mut ids = Section::begin(out, writer.events * 4)?;
        for key in writer.living {
            for record in key.records(writer.layout.stride) {
                let mut id = NULL_TEXT;
                if record[word] != NULL_WORD {
                    let text = self.shards[key.shard].texts.get(record[word]);
                    let next = known.len() as u32;
                    id = *known.entry(text).or_insert_with(|| {
                        lengths.extend((text.len() as u32).to_le_bytes());
                        bytes.extend(text.as_bytes());
                        next
                    });
                }
                ids.put(&id.to_le_bytes())?;
            }
        }
        ids.end()?;
        write_section(out, &lengths)?;
        write_section(out, &bytes)
    }
}

struct Writer<'a> {
    living: &'a [Living<'a>],
    layout: &'a Layout,
    events: u64,
}

impl Writer<'_> {
    fn words(&self, out: &mut dyn Write, word: usize) -> Result<()> {
        let mut section = Section::begin(out, self.events * 8)?;
        for key in self.living {
            for record in key.records(self.layout.stride) {
                section.put(&record[word].to_le_bytes())?;
            }
        }
        section.end()
    }

    fn bits(&self, out: &mut dyn Write, bit: usize) -> Result<()> {
        let mut section = Section::begin(out, self.events.div_ceil(8))?;
        let (mut byte, mut filled) = (0u8, 0);
        for key in self.living {
            for record in key.records(self.layout.stride) {
                byte |= (flag(record, bit) as u8) << filled;
                filled += 1;
                if filled == 8 {
                    section.put(&[byte])?;
                    (byte, filled) = (0, 0);
                }
            }
        }
        if filled > 0 {
            section.put(&[byte])?;
        }
        section.end()
    }
}

fn write_keys(out: &mut dyn Write, living: &[Living]) -> Result<()> {
    let (mut lengths, mut bytes) = (Vec::new(), Vec::new());
    for key in living {
        match key.key {
            KeyRef::Int(int) => bytes.extend(int.to_le_bytes()),
            KeyRef::Bytes(part) => {
                lengths.extend((part.len() as u32).to_le_bytes());
                bytes.extend(part);
            }
        }
    }
    write_section(out, &lengths)?;
    write_section(out, &bytes)
}
