//! A saved state under a changed plan, or under readers that look further back.
//!
//! What both plans share is kept: events, values, filters, and what endless windows know of freed events. What only the
//! new one asks for comes from a store that was rebuilt from what the log still has. Retention takes the log's oldest
//! commits, so that of events with one effective time the rebuilt store has the latest, and a key's events are found
//! again from the newest on:
//!
//!     saved      a₁ a₂ b₁ b₂ b₃ c₁ c₂     in order of effective times a, b, c
//!     rebuilt             b₂ b₃    c₂     b₁ and c₁ are of commits that the log has lost
//!
//! Events of the rebuilt store that are older than all saved ones are those that a longer window needs.

use std::collections::BTreeMap;
use std::io::Read as Input;

use serde::{Deserialize, Serialize};

use crate::error::Result;

use super::Store;
use super::base::{self, Part, What};
use super::entity::Entity;
use super::frame::damaged;
use super::layout::{Layout, Slot};
use super::load::{load_as, read_header};
use super::plan::{Read, StorePlan};
use super::ring::Ring;
use super::save::{Header, Living};
use super::texts::Texts;
use super::values::{NULL_WORD, flag, move_record_texts, set_flag};

/// The effective times up to which a state may lack something, because the log had been cut when it was built.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Since {
    events: Option<i64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    columns: BTreeMap<String, i64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    filters: BTreeMap<String, i64>,
    /// What endless windows know of freed events; it stays incomplete for ever. Of newest events the number says how
    /// many are right.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    parts: Vec<(Part, i64)>,
}

/// A read that does not see all that its definition says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    pub read: usize,
    /// What happened up to this time may be missing.
    pub since: i64,
    /// From this time on it sees everything; an endless one never does.
    pub complete_from: Option<i64>,
}

impl Since {
    pub fn is_empty(&self) -> bool {
        *self == Since::default()
    }

    /// Without what no query to come can miss. What lies on the boundary stays: where events had been freed before
    /// queries looked further back, these begin before the boundary says.
    pub fn after(&self, boundary: i64) -> Since {
        let newer = |all: &BTreeMap<String, i64>| {
            all.iter()
                .filter(|(_, since)| **since >= boundary)
                .map(|(name, since)| (name.clone(), *since))
                .collect()
        };
        Since {
            events: self.events.filter(|since| *since >= boundary),
            columns: newer(&self.columns),
            filters: newer(&self.filters),
            parts: self.parts.iter().filter(|(_, since)| *since > i64::MIN).cloned().collect(),
        }
    }

    /// What of it concerns a plan.
    fn within(&self, plan: &StorePlan, layout: &Layout) -> Since {
        let parts = base::parts(plan, layout);
        let mut since = self.clone();
        since.columns.retain(|name, _| plan.columns.iter().any(|(known, _)| known == name));
        since.filters.retain(|text, _| plan.filters.contains(text));
        since.parts.retain(|(part, _)| parts.iter().any(|asked| part.feeds(asked)));
        since
    }
}

/// What a saved state does not have and a plan asks for.
struct Lacks {
    columns: Vec<usize>,
    filters: Vec<usize>,
    parts: Vec<Part>,
    /// Events that it has freed.
    older: bool,
}

impl Lacks {
    fn of(saved: &Header, plan: &StorePlan, layout: &Layout, evict_before: i64) -> Lacks {
        let served = |asked: &Part| saved.parts.iter().any(|part| part.serves(asked));
        let columns = 0..plan.columns.len();
        let filters = 0..plan.filters.len();
        Lacks {
            columns: columns.filter(|index| !saved.plan.columns.contains(&plan.columns[*index])).collect(),
            filters: filters.filter(|index| !saved.plan.filters.contains(&plan.filters[*index])).collect(),
            parts: base::parts(plan, layout).into_iter().filter(|asked| !served(asked)).collect(),
            older: evict_before.saturating_sub(layout.span) < saved.boundary(),
        }
    }

    fn nothing(&self) -> bool {
        self.columns.is_empty() && self.filters.is_empty() && self.parts.is_empty() && !self.older
    }
}

impl Store {
    /// A saved state under a plan, for queries from `evict_before` on; none if it lacks what only the log may have.
    pub fn load_for(plan: &StorePlan, input: &mut dyn Input, evict_before: i64) -> Result<Option<Store>> {
        let layout = Layout::new(plan)?;
        let header = read_header(input)?;
        if !Lacks::of(&header, plan, &layout, evict_before).nothing() {
            return Ok(None);
        }
        let mut store = load_as(plan.clone(), &header, input, &[])?;
        store.evict_before = evict_before;
        store.since = header.since.within(plan, &layout);
        Ok(Some(store))
    }

    /// A saved state, and what it lacks under a plan from a store that was rebuilt from a log of which only the events
    /// after `log_begin` are all there.
    pub fn load_with(
        plan: &StorePlan,
        input: &mut dyn Input,
        mut rebuilt: Store,
        log_begin: i64,
    ) -> Result<Store> {
        let layout = Layout::new(plan)?;
        let header = read_header(input)?;
        let lacks = Lacks::of(&header, plan, &layout, rebuilt.evict_before);
        if layout.endless() && lacks.older {
            // What was freed cannot be told apart again: both forget what one of them has forgotten.
            rebuilt.evict_before = header.boundary().saturating_add(layout.span);
        }
        let mut store = load_as(plan.clone(), &header, input, &[])?;
        store.evict_before = rebuilt.evict_before;
        let mut store = store.settled_without(&lacks.parts)?;
        store.take(&rebuilt, &lacks)?;
        store.since = since(&header, plan, &layout, &lacks, log_begin);
        Ok(store)
    }

    /// It was built from a log of which only the events after this time are all there.
    pub fn begin_after(&mut self, log_begin: i64) {
        if self.layout.endless() {
            let parts = base::parts(&self.plan, &self.layout);
            self.since.parts.extend(parts.iter().map(|part| (known_of(part, [].into_iter()), log_begin)));
        }
        self.since.events = Some(log_begin);
    }

    /// Queries before this time are over.
    pub fn settle(&mut self, evict_before: i64) {
        self.evict_before = self.evict_before.max(evict_before);
    }

    /// The reads that do not see everything in some query to come.
    pub fn gaps(&self, evict_before: i64) -> Vec<Gap> {
        (0..self.plan.reads.len()).filter_map(|read| self.gap(read, evict_before)).collect()
    }

    /// The same of one.
    pub fn gap(&self, index: usize, evict_before: i64) -> Option<Gap> {
        let read = &self.plan.reads[index];
        if let Some(since) = self.endless_gap(read) {
            return Some(Gap { read: index, since, complete_from: None });
        }
        let column = read.column.and_then(|column| self.since.columns.get(&self.plan.columns[column].0));
        let filter = read.filter.and_then(|filter| self.since.filters.get(&self.plan.filters[filter]));
        let since = self.since.events.max(column.copied()).max(filter.copied())?;
        let from = since.saturating_add(read.length_us.unwrap_or(0)).saturating_add(read.delay_us);
        (from > evict_before).then_some(Gap { read: index, since, complete_from: Some(from) })
    }

    fn endless_gap(&self, read: &Read) -> Option<i64> {
        if read.length_us.is_some() || self.since.parts.is_empty() {
            return None;
        }
        let alone = StorePlan { reads: vec![read.clone()], ..self.plan.clone() };
        let mut asked = base::parts(&alone, &Layout::new(&alone).ok()?);
        // All events are counted in any case; only a bare count is answered by it.
        asked.retain(|part| part.what != What::Events || asked_alone(read));
        let short = |known: &Part| {
            let newest = matches!(known.what, What::Recent(_));
            asked.iter().any(|asked| known.feeds(asked) && !(newest && known.serves(asked)))
        };
        let missing = self.since.parts.iter().filter(|(part, _)| short(part));
        missing.map(|(_, since)| *since).max()
    }

    /// The same content in its saved form and back: nothing is in it that its queries cannot see.
    fn settled_without(&self, parts: &[Part]) -> Result<Store> {
        let mut bytes = Vec::new();
        self.save(&mut bytes)?;
        let input = &mut &bytes[..];
        let header = read_header(input)?;
        load_as(self.plan.clone(), &header, input, parts)
    }

    fn take(&mut self, rebuilt: &Store, lacks: &Lacks) -> Result<()> {
        let bounds = (rebuilt.boundary(), rebuilt.evict_before);
        for key in rebuilt.living() {
            let from = &rebuilt.shards[key.shard];
            let parts = from.with_base(&self.layout, key.slot, bounds, |entity| {
                lacks.parts.iter().map(|part| base::encoded_part(entity, part)).collect::<Vec<_>>()
            });
            let shard = &mut self.shards[key.shard];
            let slot = shard.slot_of(&self.layout, key.key);
            shard.change(&self.layout, slot, |entity| {
                take_events(entity, &key, &from.texts, lacks)?;
                let mut parts = lacks.parts.iter().zip(&parts);
                parts.try_for_each(|(part, bytes)| take_part(entity, part, bytes))
            })?;
        }
        Ok(())
    }
}

fn asked_alone(read: &Read) -> bool {
    read.column.is_none() && read.filter.is_none()
}

impl Header {
    fn known(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().chain(self.since.parts.iter().map(|(part, _)| part))
    }
}

fn since(saved: &Header, plan: &StorePlan, layout: &Layout, lacks: &Lacks, log_begin: i64) -> Since {
    let mut since = saved.since.within(plan, layout);
    if lacks.older {
        let kept = saved.since.events.unwrap_or(i64::MIN).max(saved.boundary());
        since.events = Some(if layout.endless() { kept } else { kept.min(log_begin) });
    }
    since.columns.extend(lacks.columns.iter().map(|column| (plan.columns[*column].0.clone(), log_begin)));
    since.filters.extend(lacks.filters.iter().map(|filter| (plan.filters[*filter].clone(), log_begin)));
    since.parts.retain(|(known, _)| !lacks.parts.iter().any(|part| known.feeds(part)));
    since.parts.extend(lacks.parts.iter().map(|part| (known_of(part, saved.known()), log_begin)));
    // Where the log has its beginning it lacks nothing.
    since.after(i64::MIN + 1)
}

/// A part that is incomplete: of newest events as many are right as were saved and right.
fn known_of<'a>(part: &Part, saved: impl Iterator<Item = &'a Part>) -> Part {
    let right = saved.filter(|known| known.feeds(part)).filter_map(|known| known.recent()).min();
    let mut known = part.clone();
    if part.recent().is_some() {
        known.what = What::Recent(right.unwrap_or(0));
    }
    known
}

/// A key's events from the log: values that the saved ones lack, and those that are older than all saved ones.
fn take_events(entity: &mut Entity, from: &Living, texts: &Texts, lacks: &Lacks) -> Result<()> {
    let stride = entity.layout.stride;
    let first = entity.ring.first;
    let times = (0..entity.ring.len() as u32).map(|at| entity.ring.time(first.wrapping_add(at), stride));
    let (kept, found) =
        (times.collect::<Vec<_>>(), from.records(stride).map(|record| record[0] as i64).collect::<Vec<_>>());
    let (pairs, older) = align(&kept, &found)?;
    for (to, at) in pairs {
        let source = from.ring.record(from.first.wrapping_add(at as u32), stride);
        let target = entity.ring.record_mut(first.wrapping_add(to as u32), stride);
        lacks.filters.iter().for_each(|bit| set_flag(target, *bit, flag(source, *bit)));
        for column in &lacks.columns {
            copy_value(entity.layout.slots[*column], target, source, texts, entity.texts);
        }
    }
    if older > 0 {
        prepend(entity, from, older, texts);
    }
    Ok(())
}

/// Pairs of the same event, and how many of the found are older than all kept ones.
fn align(kept: &[i64], found: &[i64]) -> Result<(Vec<(usize, usize)>, usize)> {
    let (mut pairs, mut left, mut older) = (Vec::new(), kept.len(), found.len());
    while left > 0 && older > 0 {
        match kept[left - 1].cmp(&found[older - 1]) {
            std::cmp::Ordering::Less => return Err(damaged("the log has an event that it lacks")),
            std::cmp::Ordering::Equal => {
                older -= 1;
                pairs.push((left - 1, older));
            }
            std::cmp::Ordering::Greater => {}
        }
        left -= 1;
    }
    Ok((pairs, older))
}

fn copy_value(slot: Slot, target: &mut [u64], source: &[u64], from: &Texts, into: &mut Texts) {
    if let Some(word) = slot.word() {
        target[word] = match slot {
            Slot::Text { .. } if source[word] != NULL_WORD => into.acquire(from.get(source[word])),
            _ => source[word],
        };
        if matches!(slot, Slot::Wide { .. }) {
            target[word + 1] = source[word + 1];
        }
    }
    if let Some(bit) = slot.bit() {
        set_flag(target, bit, flag(source, bit));
        if matches!(slot, Slot::Bool { .. }) {
            set_flag(target, bit + 1, flag(source, bit + 1));
        }
    }
}

fn prepend(entity: &mut Entity, from: &Living, older: usize, texts: &Texts) {
    let (layout, kept) = (entity.layout, entity.ring.clone());
    let mut ring = Ring::filled((older + kept.len()) as u32, &layout.null_record());
    for (record, found) in ring.records_mut(layout.stride).zip(from.records(layout.stride)).take(older) {
        record.copy_from_slice(found);
        move_record_texts(layout, record, texts, entity.texts);
    }
    for (at, record) in ring.records_mut(layout.stride).skip(older).enumerate() {
        record.copy_from_slice(kept.record(kept.first.wrapping_add(at as u32), layout.stride));
    }
    *entity.ring = ring;
}

/// One part of what was freed: of the newest events the saved ones stay, and older ones join them.
fn take_part(entity: &mut Entity, part: &Part, bytes: &[u8]) -> Result<()> {
    let What::Recent(limit) = part.what else { return base::decode(entity, part, bytes) };
    let found = base::decode_recent(entity, part, bytes)?;
    let kept = base::recent_of(entity, part).clone();
    let times = |events: &[(i64, i128)]| events.iter().map(|(time, _)| *time).collect::<Vec<_>>();
    let (_, older) = align(&times(&kept), &times(&found))?;
    let first = older.saturating_sub((limit as usize).saturating_sub(kept.len()));
    let (dropped, rest) = found.split_at(first);
    let (joining, known) = rest.split_at(older - first);
    base::release_values(entity, part, dropped.iter().chain(known));
    *base::recent_of(entity, part) = [joining, &kept].concat();
    Ok(())
}
