//! Reading a saved state, under the plan that it was written for or under another one.
//!
//! Columns are found again by name and type, filters by text, parts of what was freed by both.

use std::io::Read as Input;

use crate::error::Result;

use super::base::{self, Part, What};
use super::frame::{Pieces, damaged, read_section};
use super::keys::{Key, inline};
use super::layout::{Layout, Slot};
use super::plan::StorePlan;
use super::save::{Header, MAGIC, NULL_TEXT};
use super::texts::Texts;
use super::values::{NULL_WORD, set_flag};
use super::{SHARDS, Store, shard_of};

const HEADER_LIMIT: u64 = 1 << 26;

impl Store {
    pub fn load(plan: StorePlan, input: &mut dyn Input) -> Result<Store> {
        let header = read_header(input)?;
        if header.plan != plan {
            return Err(damaged("it was written for another plan"));
        }
        let mut store = load_as(plan, &header, input, &[])?;
        store.since = header.since;
        Ok(store)
    }
}

pub fn read_header(input: &mut dyn Input) -> Result<Header> {
    if read_section(input, MAGIC.len() as u64)? != MAGIC {
        return Err(damaged("it is not a saved state of this version"));
    }
    serde_json::from_slice(&read_section(input, HEADER_LIMIT)?)
        .map_err(|_| damaged("its header cannot be read"))
}

/// What follows a header, as a store of a plan that need not be the header's, without some parts of what was freed.
pub fn load_as(plan: StorePlan, header: &Header, input: &mut dyn Input, without: &[Part]) -> Result<Store> {
    let old = Layout::new(&header.plan).map_err(|_| damaged("its plan does not fit together"))?;
    let mut store = Store::new(plan)?;
    store.evict_before = header.evict_before;
    let keys = read_keys(input, &store.plan, header.keys)?;
    let counts = words_of(&read_section(input, header.keys.saturating_mul(4))?);
    let total: u64 = counts.iter().map(|count| *count as u64).sum();
    if keys.len() as u64 != header.keys || counts.len() != keys.len() || total != header.events {
        return Err(damaged("its counts do not agree"));
    }
    let places = keys.into_iter().zip(&counts).map(|(key, count)| {
        let shard = shard_of(key.view().hash());
        (shard, store.shards[shard].restore(&store.layout, key, *count))
    });
    let places = places.collect();
    let mut reader = Reader { store: &mut store, places, events: header.events };
    reader.records(input, &header.plan, &old)?;
    reader.parts(input, &header.parts, without)?;
    Ok(store)
}

fn read_keys(input: &mut dyn Input, plan: &StorePlan, keys: u64) -> Result<Vec<Key>> {
    let lengths = read_section(input, keys.saturating_mul(4))?;
    let bytes = read_section(input, u64::MAX)?;
    if inline(&plan.key) {
        return Ok(bytes
            .chunks_exact(8)
            .map(|c| Key::Int(i64::from_le_bytes(c.try_into().unwrap())))
            .collect());
    }
    Ok(split(&lengths, &bytes)?.into_iter().map(|part| Key::Bytes(part.into())).collect())
}

fn words_of(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
}

fn split<'a>(lengths: &[u8], mut bytes: &'a [u8]) -> Result<Vec<&'a [u8]>> {
    let mut parts = Vec::with_capacity(lengths.len() / 4);
    for length in words_of(lengths) {
        let (part, rest) =
            bytes.split_at_checked(length as usize).ok_or_else(|| damaged("a text's length is wrong"))?;
        parts.push(part);
        bytes = rest;
    }
    Ok(parts)
}

/// The keys in the order in which they were saved, by shard and slot.
struct Reader<'a> {
    store: &'a mut Store,
    places: Vec<(usize, usize)>,
    events: u64,
}

impl Reader<'_> {
    fn records(&mut self, input: &mut dyn Input, old: &StorePlan, layout: &Layout) -> Result<()> {
        self.words(input, Some(0))?;
        for filter in &old.filters {
            let bit = self.store.plan.filters.iter().position(|known| known == filter);
            self.bits(input, bit)?;
        }
        for (column, slot) in old.columns.iter().zip(&layout.slots) {
            let index = self.store.plan.columns.iter().position(|known| known == column);
            self.column(input, *slot, index.map(|index| self.store.layout.slots[index]))?;
        }
        Ok(())
    }

    /// A column goes to its slot in the new layout, or nowhere.
    fn column(&mut self, input: &mut dyn Input, old: Slot, new: Option<Slot>) -> Result<()> {
        let word = new.and_then(Slot::word);
        let bit = new.and_then(Slot::bit);
        match old {
            Slot::Int { .. } => self.bits(input, bit).and_then(|()| self.words(input, word)),
            Slot::Float { .. } | Slot::Narrow { .. } => self.words(input, word),
            Slot::Wide { .. } => {
                self.words(input, word).and_then(|()| self.words(input, word.map(|word| word + 1)))
            }
            Slot::Bool { .. } => {
                self.bits(input, bit).and_then(|()| self.bits(input, bit.map(|bit| bit + 1)))
            }
            Slot::Text { .. } => self.texts(input, word),
        }
    }

    fn each(&mut self, mut put: impl FnMut(usize, &mut [u64], usize) -> Result<()>) -> Result<()> {
        let (stride, mut event) = (self.store.layout.stride, 0);
        for (shard, slot) in &self.places {
            for record in self.store.shards[*shard].records_mut(*slot, stride) {
                put(event, record, *shard)?;
                event += 1;
            }
        }
        Ok(())
    }

    fn words(&mut self, input: &mut dyn Input, word: Option<usize>) -> Result<()> {
        let mut words = Pieces::begin(input, self.events.saturating_mul(8))?;
        if let Some(word) = word {
            self.each(|_, record, _| {
                record[word] = u64::from_le_bytes(words.take()?);
                Ok(())
            })?;
        }
        words.end()
    }

    fn bits(&mut self, input: &mut dyn Input, bit: Option<usize>) -> Result<()> {
        let mut bytes = Pieces::begin(input, self.events.div_ceil(8))?;
        let mut byte = 0;
        if let Some(bit) = bit {
            self.each(|event, record, _| {
                if event % 8 == 0 {
                    [byte] = bytes.take()?;
                }
                set_flag(record, bit, byte >> (event % 8) & 1 == 1);
                Ok(())
            })?;
        }
        bytes.end()
    }

    /// The saved ids go into the records at once, and are exchanged when the texts have been read.
    fn texts(&mut self, input: &mut dyn Input, word: Option<usize>) -> Result<()> {
        let mut ids = Pieces::begin(input, self.events.saturating_mul(4))?;
        if let Some(word) = word {
            self.each(|_, record, _| {
                record[word] = u32::from_le_bytes(ids.take()?) as u64;
                Ok(())
            })?;
        }
        ids.end()?;
        let lengths = read_section(input, self.events.saturating_mul(4))?;
        let bytes = read_section(input, u64::MAX)?;
        let texts = split(&lengths, &bytes)?
            .into_iter()
            .map(|part| std::str::from_utf8(part).map_err(|_| damaged("a text is not UTF-8")))
            .collect::<Result<Vec<&str>>>()?;
        let Some(word) = word else { return Ok(()) };
        // The texts are taken out while the records are written, for they belong to the same shards.
        let take = |shard: usize| std::mem::take(&mut self.store.shards[shard].texts);
        let mut interned: Vec<Texts> = (0..SHARDS).map(take).collect();
        self.each(|_, record, shard| {
            record[word] = match record[word] as u32 {
                NULL_TEXT => NULL_WORD,
                id => {
                    let text = texts.get(id as usize).ok_or_else(|| damaged("a text is missing"))?;
                    interned[shard].acquire(text)
                }
            };
            Ok(())
        })?;
        for (shard, texts) in self.store.shards.iter_mut().zip(interned) {
            shard.texts = texts;
        }
        Ok(())
    }

    fn parts(&mut self, input: &mut dyn Input, saved: &[Part], without: &[Part]) -> Result<()> {
        let Store { plan, layout, shards, .. } = &mut *self.store;
        let mut wanted = base::parts(plan, layout);
        wanted.retain(|part| matches!(part.what, What::Recent(_)) || !without.contains(part));
        for part in saved {
            let lengths = read_section(input, self.places.len() as u64 * 4)?;
            let bytes = read_section(input, u64::MAX)?;
            let texts = split(&lengths, &bytes)?;
            if texts.len() != self.places.len() {
                return Err(damaged("its counts do not agree"));
            }
            for wanted in wanted.iter().filter(|wanted| part.feeds(wanted)) {
                for ((shard, slot), text) in self.places.iter().zip(&texts) {
                    shards[*shard].change(layout, *slot, |entity| base::decode(entity, wanted, text))?;
                }
            }
        }
        Ok(())
    }
}
