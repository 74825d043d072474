//! What endless windows know of freed events, part by part, in its saved form.
//!
//! A part is one aggregate over the events that pass a filter and have a value in a column. It is the same for all
//! delays, because what was freed is behind every window's newer edge.

use serde::{Deserialize, Serialize};

use super::entity::Entity;
use super::frame::damaged;
use super::layout::{Family, Keep, Layout, Picked, Slot, Tally};
use super::objects::{Freed, Object};
use super::plan::StorePlan;
use super::sums::{self, Term};
use super::texts::Texts;
use crate::error::Result;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// All freed events.
    Events,
    Count,
    Sum,
    Squares,
    Unique,
    Min,
    Max,
    First,
    Recent(u32),
}

/// A part by names, so that it is found again under another plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    pub what: What,
    pub column: Option<String>,
    pub filter: Option<String>,
    #[serde(skip)]
    of: Option<Picked>,
}

impl Part {
    fn new(plan: &StorePlan, what: What, of: Picked) -> Part {
        let column = of.column.map(|column| plan.columns[column].0.clone());
        let filter = of.filter.map(|filter| plan.filters[filter].clone());
        Part { what, column, filter, of: Some(of) }
    }

    /// Whether it holds at least what another part asks for.
    pub fn serves(&self, asked: &Part) -> bool {
        let enough = match (self.what, asked.what) {
            (What::Recent(has), What::Recent(wants)) => has >= wants,
            (has, wants) => has == wants,
        };
        enough && (&self.column, &self.filter) == (&asked.column, &asked.filter)
    }

    /// Whether it holds some of what another part asks for: the newest events, if not as many.
    pub fn feeds(&self, asked: &Part) -> bool {
        let newest = matches!((self.what, asked.what), (What::Recent(_), What::Recent(_)));
        (newest || self.what == asked.what) && (&self.column, &self.filter) == (&asked.column, &asked.filter)
    }

    pub fn recent(&self) -> Option<u32> {
        match self.what {
            What::Recent(count) => Some(count),
            _ => None,
        }
    }

    fn is_of(&self, tally: &Tally) -> bool {
        let what = if self.what == What::Unique { What::Count } else { self.what };
        Some(tally.of) == self.of && what_of(tally.family) == what
    }
}

/// The parts of a plan, in a fixed order.
pub fn parts(plan: &StorePlan, layout: &Layout) -> Vec<Part> {
    if !layout.endless() {
        return Vec::new();
    }
    let mut parts = vec![Part::new(plan, What::Events, layout.picked(None, None))];
    let mut enter = |what, of| {
        let part = Part::new(plan, what, of);
        if !parts.contains(&part) {
            parts.push(part);
        }
    };
    for tally in endless_tallies(layout) {
        enter(what_of(tally.family), tally.of);
        tally.unique.iter().for_each(|_| enter(What::Unique, tally.of));
    }
    for base in &layout.bases {
        enter(what(base.keep), base.of);
    }
    parts
}

fn what_of(family: Family) -> What {
    match family {
        Family::Sums => What::Sum,
        Family::Squares => What::Squares,
        Family::Counts | Family::Sliding => What::Count,
    }
}

fn what(keep: Keep) -> What {
    match keep {
        Keep::First => What::First,
        Keep::Recent(limit) => What::Recent(limit),
        Keep::Min => What::Min,
        Keep::Max => What::Max,
    }
}

pub fn endless_tallies(layout: &Layout) -> impl Iterator<Item = &Tally> {
    layout.tallies.iter().filter(|tally| layout.windows[tally.window].length.is_none())
}

/// One part of a key whose windows hold nothing but freed events.
pub fn encode(entity: &Entity, part: &Part, out: &mut Vec<u8>) {
    let of = part.of.expect("a part of this plan");
    let tally =
        || endless_tallies(entity.layout).find(|tally| part.is_of(tally)).expect("a tally of this part");
    match part.what {
        What::Events => put_word(out, entity.words[entity.layout.freed.expect("an endless plan")]),
        What::Count | What::Sum | What::Squares => {
            put_word(out, entity.words[tally().count]);
            sums_of(tally()).for_each(|(at, term)| encode_sum(entity, at, term, out));
        }
        What::Unique => {
            let object = tally().unique.expect("a tally of this part");
            encode_values(entity, &of, entity.objects[object].values(), out);
        }
        What::Min | What::Max | What::First | What::Recent(_) => {
            let base = entity.layout.bases.iter().find(|base| base.of == of && what(base.keep) == part.what);
            encode_freed(entity, &of, &entity.objects[base.expect("a base of this part").object], out);
        }
    }
}

fn sums_of(tally: &Tally) -> impl Iterator<Item = (usize, Term)> {
    let number = tally.number;
    let sum = tally.sum.map(|at| (at, Term { number, squared: false }));
    sum.into_iter().chain(tally.squares.map(|at| (at, Term { number, squared: true })))
}

fn encode_sum(entity: &Entity, at: usize, term: Term, out: &mut Vec<u8>) {
    let (negative, words) = sums::canonical(entity.words, at, term, entity.slot, entity.spills);
    out.extend([negative as u8, words.len() as u8]);
    words.iter().for_each(|word| put_word(out, *word));
}

/// Values in their own order, not in that of the table that holds them.
fn encode_values(entity: &Entity, of: &Picked, values: Vec<i128>, out: &mut Vec<u8>) {
    let mut values: Vec<Vec<u8>> = values.into_iter().map(|value| encoded(entity.texts, of, value)).collect();
    values.sort_unstable();
    values.iter().for_each(|value| out.extend(value));
}

fn encode_freed(entity: &Entity, of: &Picked, object: &Object, out: &mut Vec<u8>) {
    let mut put = |(time, value): &Freed| {
        put_word(out, *time as u64);
        out.extend(encoded(entity.texts, of, *value));
    };
    match object {
        Object::First(first) => first.iter().for_each(put),
        Object::Recent(recent) => recent.iter().for_each(put),
        Object::Best(best) => best.iter().for_each(|value| put(&(0, *value))),
        _ => unreachable!("the layout gave this place to what was freed"),
    }
}

fn encoded(texts: &Texts, of: &Picked, value: i128) -> Vec<u8> {
    if !matches!(of.slot, Some(Slot::Text { .. })) {
        return value.to_le_bytes().into();
    }
    let text = texts.get(value as u64);
    [&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

fn put_word(out: &mut Vec<u8>, word: u64) {
    out.extend(word.to_le_bytes());
}

pub fn encoded_part(entity: &Entity, part: &Part) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(entity, part, &mut bytes);
    bytes
}

/// Gives a new key, whose events are all still ahead of its windows, one part of what was freed.
pub fn decode(entity: &mut Entity, part: &Part, mut bytes: &[u8]) -> Result<()> {
    let (layout, of) = (entity.layout, part.of.expect("a part of this plan"));
    let endless = || endless_tallies(layout).filter(|tally| part.is_of(tally));
    match part.what {
        What::Events => {
            entity.words[layout.freed.expect("an endless plan")] = take_word(&mut bytes)?;
        }
        What::Count | What::Sum | What::Squares => {
            let count = take_word(&mut bytes)?;
            endless().for_each(|tally| entity.words[tally.count] = count);
            for index in 0..endless().next().map_or(0, |tally| sums_of(tally).count()) {
                let (negative, words) = take_sum(&mut bytes)?;
                for (at, term) in endless().filter_map(|tally| sums_of(tally).nth(index)) {
                    sums::restore(entity.words, at, term, negative, &words, entity.slot, entity.spills);
                }
            }
        }
        What::Unique => {
            while !bytes.is_empty() {
                let value = take_value(entity.texts, &of, &mut bytes)?;
                endless().filter_map(|tally| tally.unique).for_each(|object| {
                    entity.objects[object].count(value, false);
                    retain(entity.texts, &of, value);
                });
                release(entity.texts, &of, value);
            }
        }
        What::Min | What::Max | What::First | What::Recent(_) => return decode_freed(entity, part, bytes),
    }
    Ok(())
}

fn decode_freed(entity: &mut Entity, part: &Part, mut bytes: &[u8]) -> Result<()> {
    let of = part.of.expect("a part of this plan");
    let base = entity.layout.bases.iter().find(|base| base.of == of && what(base.keep) == part.what);
    let base = *base.expect("a base of this part");
    while !bytes.is_empty() {
        let time = take_word(&mut bytes)? as i64;
        let value = take_value(entity.texts, &of, &mut bytes)?;
        entity.keep(&base, (time, value));
        release(entity.texts, &of, value);
    }
    Ok(())
}

/// The newest events of a part, oldest first; their texts are used once each.
pub fn decode_recent(entity: &mut Entity, part: &Part, mut bytes: &[u8]) -> Result<Vec<Freed>> {
    let of = part.of.expect("a part of this plan");
    let mut events = Vec::new();
    while !bytes.is_empty() {
        events.push((take_word(&mut bytes)? as i64, take_value(entity.texts, &of, &mut bytes)?));
    }
    Ok(events)
}

/// Where a key keeps the newest events of a part.
pub fn recent_of<'a>(entity: &'a mut Entity, part: &Part) -> &'a mut Vec<Freed> {
    let base =
        entity.layout.bases.iter().find(|base| Some(base.of) == part.of && what(base.keep) == part.what);
    match &mut entity.objects[base.expect("a base of this part").object] {
        Object::Recent(recent) => recent,
        _ => unreachable!("the layout gave this place to the newest events"),
    }
}

pub fn release_values<'a>(entity: &mut Entity, part: &Part, events: impl Iterator<Item = &'a Freed>) {
    let of = part.of.expect("a part of this plan");
    events.for_each(|(_, value)| release(entity.texts, &of, *value));
}

fn retain(texts: &mut Texts, of: &Picked, value: i128) {
    if matches!(of.slot, Some(Slot::Text { .. })) {
        texts.retain(value as u64);
    }
}

fn release(texts: &mut Texts, of: &Picked, value: i128) {
    if matches!(of.slot, Some(Slot::Text { .. })) {
        texts.release(value as u64);
    }
}

fn take_sum(bytes: &mut &[u8]) -> Result<(bool, Vec<u64>)> {
    let ([negative, count], rest) = bytes.split_first_chunk::<2>().ok_or_else(too_short)?;
    *bytes = rest;
    let words = (0..*count).map(|_| take_word(bytes)).collect::<Result<_>>()?;
    Ok((*negative == 1, words))
}

fn take_word(bytes: &mut &[u8]) -> Result<u64> {
    let (word, rest) = bytes.split_first_chunk::<8>().ok_or_else(too_short)?;
    *bytes = rest;
    Ok(u64::from_le_bytes(*word))
}

/// A value; a text is used once by it.
fn take_value(texts: &mut Texts, of: &Picked, bytes: &mut &[u8]) -> Result<i128> {
    if !matches!(of.slot, Some(Slot::Text { .. })) {
        let (value, rest) = bytes.split_first_chunk::<16>().ok_or_else(too_short)?;
        *bytes = rest;
        return Ok(i128::from_le_bytes(*value));
    }
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(too_short)?;
    let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(too_short)?;
    *bytes = rest;
    let text = std::str::from_utf8(text).map_err(|_| damaged("a text is not UTF-8"))?;
    Ok(texts.acquire(text) as i128)
}

fn too_short() -> crate::error::Error {
    damaged("a part of what was freed is too short")
}
