//! A store's saved form: columns, keys in sorted order, and nothing that depends on when it was freed or moved.
//!
//!     magic | header (JSON) | keys | events per key | times | filters | values of each column
//!
//! Only what a query to come can see is written, so equal content gives equal bytes.

use std::collections::HashMap;
use std::io::{Read as Input, Write};

use serde::{Deserialize, Serialize};

use crate::error::Result;

use super::frame::{Section, damaged, read_section, write_section};
use super::keys::Key;
use super::layout::{Layout, Slot};
use super::plan::StorePlan;
use super::ring::Ring;
use super::values::{NULL_WORD, flag, set_flag};
use super::{SHARDS, Store, shard_of};

const MAGIC: &[u8; 8] = b"penswin1";
const HEADER_LIMIT: u64 = 1 << 26;
const NULL_TEXT: u32 = u32::MAX;

#[derive(Serialize, Deserialize)]
pub struct Header {
    plan: StorePlan,
    evict_before: i64,
    span: i64,
    keys: u64,
    events: u64,
}

/// One key's living events.
struct Living<'a> {
    key: &'a Key,
    shard: usize,
    ring: &'a Ring,
    first: u32,
    count: u32,
}

impl Living<'_> {
    fn records(&self, stride: usize) -> impl Iterator<Item = &[u64]> {
        (0..self.count).map(move |offset| self.ring.record(self.first.wrapping_add(offset), stride))
    }
}

impl Store {
    pub fn save(&self, out: &mut dyn Write) -> Result<()> {
        let living = self.living();
        let events: u64 = living.iter().map(|key| key.count as u64).sum();
        let header = Header {
            plan: self.plan.clone(),
            evict_before: self.evict_before,
            span: self.layout.span,
            keys: living.len() as u64,
            events,
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
        })
    }

    fn living(&self) -> Vec<Living<'_>> {
        let boundary = self.evict_before.saturating_sub(self.layout.span);
        let mut living = Vec::with_capacity(self.keys());
        for (shard, keys) in self.shards.iter().enumerate() {
            living.extend(keys.living(&self.layout, boundary).map(|(key, ring, first)| {
                let count = ring.end().wrapping_sub(first);
                Living { key, shard, ring, first, count }
            }));
        }
        living.sort_unstable_by(|a, b| a.key.cmp(b.key));
        living
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

    pub fn load(plan: StorePlan, input: &mut dyn Input) -> Result<Store> {
        let header = read_header(input)?;
        let mut store = Store::new(plan)?;
        if header.plan != store.plan {
            return Err(damaged("it was written for another plan"));
        }
        store.evict_before = header.evict_before;
        let keys = read_keys(input, &store.plan, header.keys)?;
        let counts = read_section(input, header.keys * 4)?;
        let counts: Vec<u32> =
            counts.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect();
        let total: u64 = counts.iter().map(|count| *count as u64).sum();
        if keys.len() as u64 != header.keys || counts.len() != keys.len() || total != header.events {
            return Err(damaged("its counts do not agree"));
        }
        let places: Vec<(usize, usize)> = keys
            .into_iter()
            .zip(&counts)
            .map(|(key, count)| {
                let shard = shard_of(key.view().hash());
                (shard, store.shards[shard].restore(&store.layout, key, *count))
            })
            .collect();
        let mut reader = Reader { store: &mut store, places, events: header.events };
        reader.words(input, 0)?;
        (0..reader.store.plan.filters.len()).try_for_each(|bit| reader.bits(input, bit))?;
        for slot in reader.store.layout.slots.clone() {
            match slot {
                Slot::Int { word, bit } => reader.bits(input, bit).and_then(|()| reader.words(input, word)),
                Slot::Float { word } | Slot::Narrow { word } => reader.words(input, word),
                Slot::Wide { word } => reader.words(input, word).and_then(|()| reader.words(input, word + 1)),
                Slot::Bool { bit } => reader.bits(input, bit).and_then(|()| reader.bits(input, bit + 1)),
                Slot::Text { word } => reader.texts(input, word),
            }?;
        }
        Ok(store)
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
            Key::Int(int) => bytes.extend(int.to_le_bytes()),
            Key::Bytes(part) => {
                lengths.extend((part.len() as u32).to_le_bytes());
                bytes.extend(&part[..]);
            }
        }
    }
    write_section(out, &lengths)?;
    write_section(out, &bytes)
}

pub fn read_header(input: &mut dyn Input) -> Result<Header> {
    if read_section(input, MAGIC.len() as u64)? != MAGIC {
        return Err(damaged("it is not a saved state of this version"));
    }
    serde_json::from_slice(&read_section(input, HEADER_LIMIT)?)
        .map_err(|_| damaged("its header cannot be read"))
}

fn read_keys(input: &mut dyn Input, plan: &StorePlan, keys: u64) -> Result<Vec<Key>> {
    let lengths = read_section(input, keys.saturating_mul(4))?;
    let bytes = read_section(input, u64::MAX)?;
    if super::keys::inline(&plan.key) {
        return Ok(bytes
            .chunks_exact(8)
            .map(|c| Key::Int(i64::from_le_bytes(c.try_into().unwrap())))
            .collect());
    }
    Ok(split(&lengths, &bytes)?.into_iter().map(|part| Key::Bytes(part.into())).collect())
}

fn split<'a>(lengths: &[u8], mut bytes: &'a [u8]) -> Result<Vec<&'a [u8]>> {
    let mut parts = Vec::with_capacity(lengths.len() / 4);
    for length in lengths.chunks_exact(4) {
        let length = u32::from_le_bytes(length.try_into().unwrap()) as usize;
        let (part, rest) =
            bytes.split_at_checked(length).ok_or_else(|| damaged("a text's length is wrong"))?;
        parts.push(part);
        bytes = rest;
    }
    Ok(parts)
}

struct Reader<'a> {
    store: &'a mut Store,
    places: Vec<(usize, usize)>,
    events: u64,
}

impl Reader<'_> {
    fn each(&mut self, mut put: impl FnMut(usize, &mut [u64], usize)) {
        let (stride, mut event) = (self.store.layout.stride, 0);
        for (shard, slot) in &self.places {
            for record in self.store.shards[*shard].records_mut(*slot, stride) {
                put(event, record, *shard);
                event += 1;
            }
        }
    }

    fn section(&self, input: &mut dyn Input, length: u64) -> Result<Vec<u8>> {
        let bytes = read_section(input, length)?;
        if bytes.len() as u64 == length { Ok(bytes) } else { Err(damaged("a section is too short")) }
    }

    fn words(&mut self, input: &mut dyn Input, word: usize) -> Result<()> {
        let bytes = self.section(input, self.events * 8)?;
        self.each(|event, record, _| {
            record[word] = u64::from_le_bytes(bytes[event * 8..event * 8 + 8].try_into().unwrap());
        });
        Ok(())
    }

    fn bits(&mut self, input: &mut dyn Input, bit: usize) -> Result<()> {
        let bytes = self.section(input, self.events.div_ceil(8))?;
        self.each(|event, record, _| set_flag(record, bit, bytes[event / 8] >> (event % 8) & 1 == 1));
        Ok(())
    }

    fn texts(&mut self, input: &mut dyn Input, word: usize) -> Result<()> {
        let ids = self.section(input, self.events * 4)?;
        let ids: Vec<u32> = ids.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect();
        let lengths = read_section(input, self.events * 4)?;
        let bytes = read_section(input, u64::MAX)?;
        let texts: Vec<&str> = split(&lengths, &bytes)?
            .into_iter()
            .map(|part| std::str::from_utf8(part).map_err(|_| damaged("a text is not UTF-8")))
            .collect::<Result<_>>()?;
        if ids.iter().any(|id| *id != NULL_TEXT && *id as usize >= texts.len()) {
            return Err(damaged("a text is missing"));
        }
        // The texts are taken out while the records are written, for they belong to the same shards.
        let mut interned: Vec<_> =
            (0..SHARDS).map(|shard| std::mem::take(&mut self.store.shards[shard].texts)).collect();
        self.each(|event, record, shard| {
            record[word] = match ids[event] {
                NULL_TEXT => NULL_WORD,
                id => interned[shard].acquire(texts[id as usize]),
            };
        });
        for (shard, texts) in interned.drain(..).enumerate() {
            self.store.shards[shard].texts = texts;
        }
        Ok(())
    }
}
