//! A share of the keys, by hash. Shards have nothing in common, so that threads can work on them side by side.

use arrow_array::BooleanArray;
use hashbrown::HashTable;

use super::evaluate::View;
use super::keys::{Key, KeyRef};
use super::layout::Layout;
use super::output::Answers;
use super::ring::Ring;
use super::texts::Texts;
use super::values::{Column, copy_texts, release_record, write_record};

/// A batch, checked and ready to be read by row.
pub struct Job<'a> {
    pub layout: &'a Layout,
    pub times: &'a [i64],
    pub columns: &'a [Column<'a>],
    pub filters: &'a [BooleanArray],
    pub insert: bool,
    pub wanted: &'a [usize],
    /// Events up to this time have left every window, for every query to come.
    pub boundary: i64,
}

/// What is kept of one key: its events, and for each window the places where it begins and ends.
#[derive(Debug)]
struct Entry {
    key: Key,
    ring: Ring,
    cursors: Box<[(u32, u32)]>,
    used: bool,
}

#[derive(Default, Debug)]
pub struct Shard {
    table: HashTable<u32>,
    entries: Vec<Entry>,
    free: Vec<u32>,
    pub texts: Texts,
    pub faults: u64,
    pub retained: usize,
    bytes: usize,
    hand: usize,
    record: Vec<u64>,
}

impl Shard {
    pub fn keys(&self) -> usize {
        self.table.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
            + self.texts.bytes()
            + self.table.allocation_size()
            + self.entries.capacity() * size_of::<Entry>()
    }

    fn find(&self, hash: u64, key: KeyRef) -> Option<usize> {
        self.table
            .find(hash, |slot| self.entries[*slot as usize].key.view() == key)
            .map(|slot| *slot as usize)
    }

    /// Whether a key has anything that a query to come can see.
    pub fn known(&self, layout: &Layout, hash: u64, key: KeyRef, boundary: i64) -> bool {
        let ring = self.find(hash, key).map(|slot| &self.entries[slot].ring);
        ring.is_some_and(|ring| {
            layout.endless
                || ring.len() > 0 && ring.time(ring.end().wrapping_sub(1), layout.stride) > boundary
        })
    }

    /// Lets one row read, and then be inserted.
    pub fn pass_row(&mut self, job: &Job, row: usize, hash: u64, key: KeyRef, answers: &mut Answers) {
        answers.begin(row);
        let slot = match self.find(hash, key) {
            Some(slot) => slot,
            None if job.insert => self.enter(job.layout, hash, key.to_key()),
            None => return self.answer_unknown(job, row, answers),
        };
        let time = job.times[row];
        self.slide(job.layout, slot, time);
        self.answer(job, slot, time, false, answers);
        if job.insert {
            self.insert(job, slot, row);
        }
        self.answer(job, slot, time, true, answers);
        self.evict(job.layout, slot, job.boundary.min(time.saturating_sub(job.layout.span)));
    }

    /// The keys that have events after the boundary, and the place of the first of these.
    pub fn living<'a>(
        &'a self,
        layout: &Layout,
        boundary: i64,
    ) -> impl Iterator<Item = (&'a Key, &'a Ring, u32)> + use<'a> {
        let (stride, boundary) = (layout.stride, if layout.endless { i64::MIN } else { boundary });
        let used = self.entries.iter().filter(|entry| entry.used);
        let living = used.map(move |entry| {
            (&entry.key, &entry.ring, seek(&entry.ring, stride, entry.ring.first, boundary))
        });
        living.filter(|(_, ring, first)| *first != ring.end())
    }

    /// Makes room for a saved key's events; `records_mut` then gives them.
    pub fn restore(&mut self, layout: &Layout, key: Key, count: u32) -> usize {
        let slot = self.enter(layout, key.view().hash(), key);
        self.entries[slot].ring = Ring::zeros(count, layout.stride);
        self.bytes += self.entries[slot].ring.bytes();
        self.retained += count as usize;
        slot
    }

    pub fn records_mut(&mut self, slot: usize, stride: usize) -> impl Iterator<Item = &mut [u64]> {
        self.entries[slot].ring.records_mut(stride)
    }

    /// Lets one row pass as if it came next, on a copy of its key's state that is dropped again.
    pub fn peek_row(&mut self, job: &Job, from: &Shard, row: usize, key: KeyRef, answers: &mut Answers) {
        let hash = key.hash();
        if let Some(slot) = from.find(hash, key) {
            self.copy_key(job.layout, from, slot);
        }
        self.pass_row(job, row, hash, key, answers);
        if let Some(slot) = self.find(hash, key) {
            self.forget(slot);
        }
    }

    fn copy_key(&mut self, layout: &Layout, from: &Shard, slot: usize) {
        let Entry { key, ring, .. } = &from.entries[slot];
        let copy = self.restore(layout, key.clone(), ring.len() as u32);
        let records = self.entries[copy].ring.records_mut(layout.stride);
        for (offset, record) in records.enumerate() {
            record.copy_from_slice(ring.record(ring.first.wrapping_add(offset as u32), layout.stride));
            copy_texts(layout, record, &from.texts, &mut self.texts);
        }
    }

    fn enter(&mut self, layout: &Layout, hash: u64, key: Key) -> usize {
        let entry = Entry {
            key,
            ring: Ring::default(),
            cursors: vec![(0, 0); layout.windows.len()].into(),
            used: true,
        };
        self.bytes += entry.key.bytes() + entry.cursors.len() * 8;
        let slot = match self.free.pop() {
            Some(slot) => slot as usize,
            None => self.entries.len(),
        };
        if slot == self.entries.len() {
            self.entries.push(entry);
        } else {
            self.entries[slot] = entry;
        }
        let entries = &self.entries;
        self.table.insert_unique(hash, slot as u32, |slot| entries[*slot as usize].key.view().hash());
        slot
    }

    /// Moves every window of a key to a time, forwards or backwards.
    fn slide(&mut self, layout: &Layout, slot: usize, time: i64) {
        let Entry { ring, cursors, .. } = &mut self.entries[slot];
        for (window, (tail, head)) in layout.windows.iter().zip(cursors) {
            *head = seek(ring, layout.stride, *head, window.newest(time));
            *tail = match window.oldest(time) {
                Some(oldest) => seek(ring, layout.stride, *tail, oldest),
                None => ring.first,
            };
        }
    }

    fn insert(&mut self, job: &Job, slot: usize, row: usize) {
        let layout = job.layout;
        let mut record = std::mem::take(&mut self.record);
        record.resize(layout.stride, 0);
        write_record(layout, job.times[row], job.columns, job.filters, row, &mut record, &mut self.texts);
        let Entry { ring, cursors, .. } = &mut self.entries[slot];
        let place = seek(ring, layout.stride, ring.end(), job.times[row]);
        self.bytes -= ring.bytes();
        ring.insert(place, &record);
        self.bytes += ring.bytes();
        self.retained += 1;
        self.record = record;
        for (window, (_, head)) in layout.windows.iter().zip(cursors) {
            *head = head.wrapping_add((window.delay == 0) as u32);
        }
    }

    fn answer(&mut self, job: &Job, slot: usize, time: i64, after: bool, answers: &mut Answers) {
        let Entry { ring, cursors, .. } = &self.entries[slot];
        for (index, wanted) in job.wanted.iter().enumerate() {
            let step = &job.layout.steps[*wanted];
            if step.after == after {
                let (tail, head) = cursors[step.window];
                let view = View { layout: job.layout, ring, texts: &self.texts, tail, head, time };
                answers.set(index, view.read(step, &mut self.faults));
            }
        }
    }

    fn answer_unknown(&mut self, job: &Job, row: usize, answers: &mut Answers) {
        let (ring, time) = (&Ring::default(), job.times[row]);
        let view = View { layout: job.layout, ring, texts: &self.texts, tail: 0, head: 0, time };
        for (index, wanted) in job.wanted.iter().enumerate() {
            answers.set(index, view.read(&job.layout.steps[*wanted], &mut self.faults));
        }
    }

    fn evict(&mut self, layout: &Layout, slot: usize, boundary: i64) {
        if layout.endless {
            return;
        }
        let ring = &mut self.entries[slot].ring;
        while ring.len() > 0 && ring.time(ring.first, layout.stride) <= boundary {
            release_record(layout, ring.record(ring.first, layout.stride), &mut self.texts);
            ring.evict(layout.stride);
            self.retained -= 1;
        }
        self.bytes -= ring.bytes();
        ring.shrink(layout.stride);
        self.bytes += ring.bytes();
    }

    /// Visits some keys in turn and frees what has left every window.
    pub fn sweep(&mut self, layout: &Layout, visits: usize, evict_before: i64) {
        self.texts.sweep();
        for _ in 0..visits.min(self.entries.len()) {
            self.hand = if self.hand + 1 >= self.entries.len() { 0 } else { self.hand + 1 };
            if self.entries[self.hand].used {
                self.sweep_key(layout, self.hand, evict_before);
            }
        }
    }

    fn sweep_key(&mut self, layout: &Layout, slot: usize, evict_before: i64) {
        let boundary = evict_before.saturating_sub(layout.span);
        let ring = &self.entries[slot].ring;
        if ring.len() > 0 && ring.time(ring.first, layout.stride) > boundary {
            return;
        }
        self.slide(layout, slot, evict_before);
        self.evict(layout, slot, boundary);
        if self.entries[slot].ring.len() == 0 {
            self.forget(slot);
        }
    }

    fn forget(&mut self, slot: usize) {
        let entry = &mut self.entries[slot];
        let hash = entry.key.view().hash();
        if let Ok(found) = self.table.find_entry(hash, |known| *known as usize == slot) {
            found.remove();
            self.bytes -= entry.key.bytes() + entry.cursors.len() * 8;
            (entry.used, entry.key, entry.cursors) = (false, Key::Int(0), Box::default());
            self.free.push(slot as u32);
        }
    }
}

/// The place of the first event after a time, sought from a place near it.
fn seek(ring: &Ring, stride: usize, mut place: u32, time: i64) -> u32 {
    while place != ring.end() && ring.time(place, stride) <= time {
        place = place.wrapping_add(1);
    }
    while place != ring.first && ring.time(place.wrapping_sub(1), stride) > time {
        place = place.wrapping_sub(1);
    }
    place
}
