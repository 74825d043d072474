//! One key at hand: its windows move, events enter and leave them, and old events are freed.

use std::cmp::Ordering;

use super::layout::{Base, Keep, Layout, Picked, Slot, TIME, Tally};
use super::objects::{self, Freed, Object};
use super::ring::Ring;
use super::sums::{self, Spills, Term};
use super::texts::Texts;
use super::values::{compare, flag, move_record_texts, release_record, value};

pub struct Entity<'a> {
    pub layout: &'a Layout,
    pub slot: u32,
    pub words: &'a mut [u64],
    pub ring: &'a mut Ring,
    pub objects: &'a mut [Object],
    pub texts: &'a mut Texts,
    pub spills: &'a mut Spills,
}

/// The edge at which an event passes into or out of a window.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Edge {
    EnterNewest,
    LeaveOldest,
    EnterOldest,
    LeaveNewest,
}

impl Edge {
    fn away(self) -> bool {
        matches!(self, Edge::LeaveOldest | Edge::LeaveNewest)
    }
}

/// The places where a window begins and ends, kept in one word.
#[inline]
pub fn places(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

fn word((tail, head): (u32, u32)) -> u64 {
    (head as u64) << 32 | tail as u64
}

impl Entity<'_> {
    /// Moves every window to a time, forwards or backwards.
    pub fn slide(&mut self, time: i64) {
        let from = std::mem::replace(&mut self.words[TIME], time as u64) as i64;
        let windows = 0..self.layout.windows.len();
        match time.cmp(&from) {
            Ordering::Greater => windows.for_each(|window| self.forwards(window, time)),
            Ordering::Less => windows.for_each(|window| self.backwards(window, time)),
            Ordering::Equal => {}
        }
    }

    fn forwards(&mut self, window: usize, time: i64) {
        let about = self.layout.windows[window];
        let (mut tail, mut head) = self.places(window);
        while head != self.ring.end() && self.time(head) <= about.newest(time) {
            self.pass(window, head, Edge::EnterNewest, tail);
            head = head.wrapping_add(1);
        }
        if let Some(oldest) = about.oldest(time) {
            while tail != head && self.time(tail) <= oldest {
                self.pass(window, tail, Edge::LeaveOldest, tail);
                tail = tail.wrapping_add(1);
            }
        }
        self.set_places(window, (tail, head));
    }

    fn backwards(&mut self, window: usize, time: i64) {
        let about = self.layout.windows[window];
        let (mut tail, mut head) = self.places(window);
        if let Some(oldest) = about.oldest(time) {
            while tail != self.ring.first && self.time(tail.wrapping_sub(1)) > oldest {
                tail = tail.wrapping_sub(1);
                self.pass(window, tail, Edge::EnterOldest, tail);
            }
        }
        while head != tail && self.time(head.wrapping_sub(1)) > about.newest(time) {
            head = head.wrapping_sub(1);
            self.pass(window, head, Edge::LeaveNewest, tail);
        }
        self.set_places(window, (tail, head));
    }

    /// Inserts an event at the time where the windows stand, after equal ones.
    pub fn insert(&mut self, record: &[u64]) {
        let mut place = self.ring.end();
        while place != self.ring.first && self.time(place.wrapping_sub(1)) > record[0] as i64 {
            place = place.wrapping_sub(1);
        }
        self.ring.insert(place, record);
        for window in 0..self.layout.windows.len() {
            if self.layout.windows[window].delay == 0 {
                let (tail, head) = self.places(window);
                debug_assert_eq!(head, place);
                self.pass(window, place, Edge::EnterNewest, tail);
                self.set_places(window, (tail, head.wrapping_add(1)));
            }
        }
    }

    /// Frees events up to a time that all windows have left behind; gives how many.
    pub fn evict(&mut self, boundary: i64) -> usize {
        let before = self.ring.len();
        while self.ring.len() > 0 && self.time(self.ring.first) <= boundary {
            self.keep_freed();
            let record = self.ring.record(self.ring.first, self.layout.stride);
            release_record(self.layout, record, self.texts);
            self.ring.evict();
        }
        if before != self.ring.len() {
            self.ring.shrink(self.layout.stride);
        }
        before - self.ring.len()
    }

    /// Frees events up to the boundary of all queries from `evict_before` on.
    pub fn free(&mut self, boundary: i64, evict_before: i64) -> usize {
        if (self.words[TIME] as i64) < evict_before {
            self.slide(evict_before);
        }
        self.evict(boundary)
    }

    /// Exchanges the texts of another shard, which a copied key uses, for this one's.
    pub fn move_texts(&mut self, from: &Texts) {
        let layout = self.layout;
        if !layout.slots.iter().any(|slot| matches!(slot, Slot::Text { .. })) {
            return;
        }
        for offset in 0..self.ring.len() as u32 {
            let place = self.ring.first.wrapping_add(offset);
            move_record_texts(layout, self.ring.record_mut(place, layout.stride), from, self.texts);
        }
        let tallies = layout.tallies.iter().map(|tally| (tally.of, tally.unique));
        let bases = layout.bases.iter().map(|base| (base.of, Some(base.object)));
        for (of, object) in tallies.chain(bases) {
            if let (Some(Slot::Text { .. }), Some(object)) = (of.slot, object) {
                self.objects[object].exchange(|id| self.texts.acquire(from.get(id as u64)) as i128);
            }
        }
    }

    /// Keeps what endless windows need of the oldest event, which is about to be freed.
    fn keep_freed(&mut self) {
        let (Some(freed), place) = (self.layout.freed, self.ring.first) else { return };
        self.words[freed] += 1;
        let layout = self.layout;
        for base in &layout.bases {
            let record = self.ring.record(place, layout.stride);
            if let Some(value) = pick(&base.of, record) {
                self.keep(base, (record[0] as i64, value));
            }
        }
        for (window, about) in self.layout.windows.iter().enumerate() {
            if about.length.is_none() {
                let (tail, head) = self.places(window);
                debug_assert!(tail == place && head != place);
                self.set_places(window, (tail.wrapping_add(1), head));
                for tally in &self.layout.tallies[self.layout.tallies_of[window].clone()] {
                    let extremes = [tally.min, tally.max].into_iter().flatten();
                    extremes.for_each(|object| objects::pop_oldest(self.objects[object].places(), place));
                }
            }
        }
    }

    pub fn keep(&mut self, base: &Base, (time, value): Freed) {
        let texts = &*self.texts;
        let order = |a, b| compare(base.of.kind, a, b, texts);
        let dropped = match (&mut self.objects[base.object], base.keep) {
            (Object::First(first), _) => objects::keep_first(first, (time, value)).map(|(_, value)| value),
            (Object::Recent(recent), Keep::Recent(limit)) => {
                objects::keep_recent(recent, limit as usize, (time, value)).map(|(_, value)| value)
            }
            (Object::Best(best), Keep::Max) => objects::keep_best(best, value, |a, b| order(b, a)),
            (Object::Best(best), _) => objects::keep_best(best, value, order),
            _ => unreachable!("the layout gave this place to what was freed"),
        };
        if let Some(Slot::Text { .. }) = base.of.slot {
            self.texts.retain(value as u64);
            dropped.into_iter().for_each(|value| self.texts.release(value as u64));
        }
    }

    #[inline(always)]
    fn pass(&mut self, window: usize, place: u32, edge: Edge, tail: u32) {
        let layout = self.layout;
        let Some(tallies) = &layout.quick_of[window] else { return self.pass_any(window, place, edge, tail) };
        let record = self.ring.record(place, layout.stride);
        tallies.iter().for_each(|tally| tally.pass(record, self.words, edge.away()));
    }

    #[inline(never)]
    fn pass_any(&mut self, window: usize, place: u32, edge: Edge, tail: u32) {
        let layout = self.layout;
        for tally in &layout.tallies[layout.tallies_of[window].clone()] {
            self.count(tally, place, edge, tail);
        }
    }

    #[inline]
    fn count(&mut self, tally: &Tally, place: u32, edge: Edge, tail: u32) {
        let Some(value) = pick(&tally.of, self.ring.record(place, self.layout.stride)) else { return };
        let away = edge.away();
        self.words[tally.count] = self.words[tally.count].wrapping_add(if away { u64::MAX } else { 1 });
        let number = tally.number;
        if let Some(at) = tally.sum {
            let term = Term { number, squared: false };
            sums::add(self.words, at, term, value, away, self.slot, self.spills);
        }
        if let Some(at) = tally.squares {
            let term = Term { number, squared: true };
            sums::add(self.words, at, term, value, away, self.slot, self.spills);
        }
        if let Some(object) = tally.unique {
            self.count_value(tally, object, value, away);
        }
        if let Some(object) = tally.min {
            self.race(tally, object, place, edge, tail, Ordering::Less);
        }
        if let Some(object) = tally.max {
            self.race(tally, object, place, edge, tail, Ordering::Greater);
        }
    }

    fn count_value(&mut self, tally: &Tally, object: usize, value: i128, away: bool) {
        let changed = self.objects[object].count(value, away);
        // A window's events hold its texts; the endless one remembers them for longer than their events.
        let endless = self.layout.windows[tally.window].length.is_none();
        if changed && endless && matches!(tally.of.slot, Some(Slot::Text { .. })) {
            match away {
                false => self.texts.retain(value as u64),
                true => self.texts.release(value as u64),
            }
        }
    }

    fn race(&mut self, tally: &Tally, object: usize, place: u32, edge: Edge, tail: u32, better: Ordering) {
        let (layout, ring, texts) = (self.layout, &*self.ring, &*self.texts);
        let value = |place| pick(&tally.of, ring.record(place, layout.stride));
        let wins = |a, b| match (value(a), value(b)) {
            (Some(a), Some(b)) => compare(tally.of.kind, a, b, texts) == better,
            _ => unreachable!("only events that pass are in the race"),
        };
        let passing = |last: Option<u32>| {
            let start = last.map_or(tail, |last| last.wrapping_add(1));
            let others = 0..place.wrapping_sub(start);
            others.rev().map(move |offset| start.wrapping_add(offset)).filter(|place| value(*place).is_some())
        };
        let places = self.objects[object].places();
        match edge {
            Edge::EnterNewest => objects::push_newest(places, place, wins),
            Edge::EnterOldest => objects::push_oldest(places, place, wins),
            Edge::LeaveOldest => objects::pop_oldest(places, place),
            Edge::LeaveNewest => objects::pop_newest(places, place, passing, wins),
        }
    }

    fn time(&self, place: u32) -> i64 {
        self.ring.time(place, self.layout.stride)
    }

    fn places(&self, window: usize) -> (u32, u32) {
        places(self.words[self.layout.cursors + window])
    }

    fn set_places(&mut self, window: usize, at: (u32, u32)) {
        self.words[self.layout.cursors + window] = word(at);
    }

    /// The memory of its ring and objects.
    pub fn bytes(&self) -> usize {
        self.ring.bytes() + self.objects.iter().map(Object::bytes).sum::<usize>()
    }
}

/// A record's value, if it passes: `Some(0)` where only the event counts.
#[inline(always)]
pub fn pick(of: &Picked, record: &[u64]) -> Option<i128> {
    if of.filter.is_some_and(|bit| !flag(record, bit)) {
        return None;
    }
    match of.slot {
        Some(slot) => value(slot, record),
        None => Some(0),
    }
}
