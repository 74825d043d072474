//! A share of the keys, by hash. Shards have nothing in common, so that threads can work on them side by side.

use arrow_array::BooleanArray;
use hashbrown::HashTable;

use super::entity::{Entity, places};
use super::evaluate::View;
use super::keys::{Key, KeyRef, Keys};
use super::layout::{Layout, Step};
use super::objects::Object;
use super::output::{Answers, Shape};
use super::ring::Ring;
use super::slab::Slab;
use super::sums::Spills;
use super::texts::Texts;
use super::values::{Column, write_record};

/// A batch, checked and ready to be read by row.
pub struct Job<'a> {
    pub layout: &'a Layout,
    pub times: &'a [i64],
    pub keys: &'a Keys<'a>,
    pub columns: &'a [Column<'a>],
    pub filters: &'a [BooleanArray],
    pub insert: bool,
    /// The wanted reads by their place among the answers: those before the row is inserted, those after.
    pub before: Vec<(usize, &'a Step)>,
    pub after: Vec<(usize, &'a Step)>,
    pub shape: Shape,
    /// Events up to this time have left every window, for every query to come.
    pub boundary: i64,
}

/// A row with its key's hash.
pub type Hashed = (u32, u64);

/// How many rows are looked up together.
const AHEAD: usize = 16;
const UNKNOWN: u32 = u32::MAX;

#[derive(Default, Debug)]
pub struct Shard {
    table: HashTable<u32>,
    slab: Slab,
    pub texts: Texts,
    spills: Spills,
    pub faults: u64,
    pub retained: usize,
    /// What the keys point to.
    bytes: usize,
    /// The next slot that the sweep visits, and what it freed before when its round began.
    hand: usize,
    round: Option<i64>,
    record: Vec<u64>,
}

impl Shard {
    pub fn keys(&self) -> usize {
        self.table.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
            + self.texts.bytes()
            + self.spills.bytes()
            + self.table.allocation_size()
            + self.slab.bytes()
    }

    #[inline]
    fn find(&self, hash: u64, key: KeyRef) -> Option<usize> {
        self.table.find(hash, |slot| self.slab.key(*slot as usize) == key).map(|slot| *slot as usize)
    }

    /// Whether a key has anything that a query to come can see.
    pub fn known(&self, layout: &Layout, hash: u64, key: KeyRef, boundary: i64) -> bool {
        let ring = self.find(hash, key).map(|slot| self.slab.ring(slot));
        ring.is_some_and(|ring| {
            layout.endless() || newest(ring, layout.stride).is_some_and(|time| time > boundary)
        })
    }

    /// Lets rows read and be inserted, in their order.
    pub fn pass(&mut self, job: &Job, rows: &[Hashed], answers: &mut Answers) {
        for group in rows.chunks(AHEAD) {
            let mut slots = [UNKNOWN; AHEAD];
            if group.len() > 1 {
                self.look_ahead(job, group, &mut slots);
            }
            for ((row, hash), slot) in group.iter().zip(slots) {
                self.pass_row(job, *row, *hash, slot, answers);
            }
        }
    }

    /// Finds the keys of some rows, and asks for what they will need: the cache misses of different rows overlap,
    /// where one after the other they would be most of the time.
    fn look_ahead(&self, job: &Job, group: &[Hashed], slots: &mut [u32; AHEAD]) {
        for ((row, hash), slot) in group.iter().zip(slots.iter_mut()) {
            if let Some(key) = job.keys.get(*row as usize)
                && let Some(found) = self.find(*hash, key)
            {
                *slot = found as u32;
            }
        }
        let known = || slots.iter().filter(|slot| **slot != UNKNOWN).map(|slot| *slot as usize);
        known().for_each(|slot| self.slab.prefetch(slot));
        for slot in known() {
            let (ring, stride) = (self.slab.ring(slot), job.layout.stride);
            for cursor in &self.slab.words(slot)[job.layout.cursors..][..job.layout.windows.len()] {
                let (tail, head) = places(*cursor);
                ring.prefetch(tail, stride);
                ring.prefetch(head, stride);
            }
            ring.prefetch(ring.end().wrapping_sub(1), stride);
        }
    }

    #[inline]
    fn pass_row(&mut self, job: &Job, row: u32, hash: u64, slot: u32, answers: &mut Answers) {
        let line = answers.line(row, &job.shape);
        if slot != UNKNOWN {
            return self.pass_slot(job, row as usize, slot as usize, line);
        }
        let key = job.keys.get(row as usize).expect("a row without a key has no hash");
        match self.find(hash, key) {
            Some(slot) => self.pass_slot(job, row as usize, slot, line),
            None if job.insert => {
                let slot = self.enter(job.layout, hash, key.to_key());
                self.pass_slot(job, row as usize, slot, line);
            }
            None => self.answer_unknown(job, line),
        }
    }

    fn pass_slot(&mut self, job: &Job, row: usize, slot: usize, line: &mut [u64]) {
        let (layout, time) = (job.layout, job.times[row]);
        let mut record = std::mem::take(&mut self.record);
        if job.insert {
            record.resize(layout.stride, 0);
            write_record(layout, time, job.columns, job.filters, row, &mut record, &mut self.texts);
        }
        let (mut entity, faults) = self.entity(layout, slot);
        let before = entity.bytes();
        entity.slide(time);
        let freed = entity.evict(job.boundary.min(time.saturating_sub(layout.span)));
        if !job.before.is_empty() {
            answer(job, &job.before, &entity, line, faults);
        }
        if job.insert {
            entity.insert(&record);
        }
        if !job.after.is_empty() {
            answer(job, &job.after, &entity, line, faults);
        }
        let after = entity.bytes();
        self.bytes = self.bytes - before + after;
        self.retained = self.retained + job.insert as usize - freed;
        self.record = record;
    }

    fn entity<'a>(&'a mut self, layout: &'a Layout, slot: usize) -> (Entity<'a>, &'a mut u64) {
        let (words, ring, objects) = self.slab.block(slot);
        let (texts, spills) = (&mut self.texts, &mut self.spills);
        (Entity { layout, slot: slot as u32, words, ring, objects, texts, spills }, &mut self.faults)
    }

    fn answer_unknown(&mut self, job: &Job, line: &mut [u64]) {
        let (mut words, mut ring) = (vec![0; job.layout.words], Ring::default());
        let mut objects: Vec<_> = job.layout.objects.iter().map(Object::new).collect();
        let nobody = Entity {
            layout: job.layout,
            slot: UNKNOWN,
            words: &mut words,
            ring: &mut ring,
            objects: &mut objects,
            texts: &mut self.texts,
            spills: &mut self.spills,
        };
        answer(job, &job.before, &nobody, line, &mut self.faults);
        answer(job, &job.after, &nobody, line, &mut self.faults);
    }

    fn enter(&mut self, layout: &Layout, hash: u64, key: Key) -> usize {
        self.bytes += key.bytes() + layout.objects.len() * size_of::<Object>();
        let slot = self.slab.enter(layout, key);
        let slab = &self.slab;
        self.table.insert_unique(hash, slot as u32, |slot| slab.key(*slot as usize).hash());
        slot
    }

    /// Visits some keys in turn and frees what has left every window.
    pub fn sweep(&mut self, layout: &Layout, visits: usize, evict_before: i64) {
        for _ in 0..visits {
            if self.hand >= self.slab.len() {
                self.hand = 0;
                if self.round == Some(evict_before) {
                    return; // a whole round found all there is to find
                }
                self.round = Some(evict_before);
            }
            if self.hand < self.slab.len() && self.slab.used(self.hand) {
                self.sweep_key(layout, self.hand, evict_before);
            }
            self.hand += 1;
        }
    }

    fn sweep_key(&mut self, layout: &Layout, slot: usize, evict_before: i64) {
        let boundary = evict_before.saturating_sub(layout.span);
        let ring = self.slab.ring(slot);
        if ring.len() > 0 && ring.time(ring.first, layout.stride) > boundary {
            return;
        }
        let (mut entity, _) = self.entity(layout, slot);
        let before = entity.bytes();
        let freed = entity.free(boundary, evict_before);
        let (after, left) = (entity.bytes(), entity.ring.len());
        self.bytes = self.bytes - before + after;
        self.retained -= freed;
        if left == 0 && !layout.endless() {
            self.forget(layout, slot);
        }
    }

    fn forget(&mut self, layout: &Layout, slot: usize) {
        let key = self.slab.key(slot);
        let hash = key.hash();
        self.bytes -= key.to_key().bytes() + layout.objects.len() * size_of::<Object>();
        let (entity, _) = self.entity(layout, slot);
        let bytes = entity.bytes();
        self.bytes -= bytes;
        if let Ok(found) = self.table.find_entry(hash, |known| *known as usize == slot) {
            found.remove();
        }
        self.slab.leave(slot);
    }

    /// Lets one row pass as if it came next, on a copy of its key's state that is dropped again.
    pub fn peek_row(&mut self, job: &Job, from: &Shard, row: Hashed, key: KeyRef, answers: &mut Answers) {
        if let Some(slot) = from.find(row.1, key) {
            self.copy_key(job.layout, from, slot);
        }
        self.pass_row(job, row.0, row.1, UNKNOWN, answers);
        if let Some(slot) = self.find(row.1, key) {
            self.drop_copy(job.layout, slot);
        }
    }

    /// Copies a key from another shard; its texts are this one's then.
    fn copy_key(&mut self, layout: &Layout, from: &Shard, slot: usize) -> usize {
        let key = from.slab.key(slot);
        let copy = self.enter(layout, key.hash(), key.to_key());
        let (words, ring, objects) = self.slab.block(copy);
        words.copy_from_slice(from.slab.words(slot));
        *ring = from.slab.ring(slot).clone();
        objects.clone_from_slice(from.slab.objects(slot));
        self.spills.copy(&from.spills, (slot as u32, copy as u32), layout);
        let (mut entity, _) = self.entity(layout, copy);
        entity.move_texts(&from.texts);
        let bytes = entity.bytes();
        self.bytes += bytes;
        self.retained += self.slab.ring(copy).len();
        copy
    }

    /// Drops a copy, but not its texts, which answers may show.
    fn drop_copy(&mut self, layout: &Layout, slot: usize) {
        self.spills.forget(slot as u32, layout);
        self.forget(layout, slot);
    }

    /// Calls with each key that a query to come can see something of, and the place of its first living event.
    pub fn living(&self, layout: &Layout, boundary: i64) -> Vec<(usize, u32)> {
        let slots = (0..self.slab.len()).filter(|slot| self.slab.used(*slot));
        let living = slots.map(|slot| (slot, first_after(self.slab.ring(slot), layout.stride, boundary)));
        living.filter(|(slot, first)| layout.endless() || *first != self.slab.ring(*slot).end()).collect()
    }

    pub fn key(&self, slot: usize) -> KeyRef<'_> {
        self.slab.key(slot)
    }

    pub fn ring(&self, slot: usize) -> &Ring {
        self.slab.ring(slot)
    }

    /// Shows what endless windows know of a key's freed events, on a copy.
    pub fn with_base<T>(
        &self,
        layout: &Layout,
        slot: usize,
        (boundary, evict_before): (i64, i64),
        show: impl FnOnce(&Entity) -> T,
    ) -> T {
        let mut copies = Shard::default();
        let copy = copies.copy_key(layout, self, slot);
        let (mut entity, _) = copies.entity(layout, copy);
        entity.free(boundary, evict_before);
        entity.slide(i64::MIN);
        show(&entity)
    }

    /// Where a key is; entered if it is new.
    pub fn slot_of(&mut self, layout: &Layout, key: KeyRef) -> usize {
        let hash = key.hash();
        self.find(hash, key).unwrap_or_else(|| self.enter(layout, hash, key.to_key()))
    }

    /// Makes room for a saved key's events.
    pub fn restore(&mut self, layout: &Layout, key: Key, count: u32) -> usize {
        let slot = self.enter(layout, key.view().hash(), key);
        let (_, ring, _) = self.slab.block(slot);
        *ring = Ring::filled(count, &layout.null_record());
        self.bytes += ring.bytes();
        self.retained += count as usize;
        slot
    }

    pub fn records_mut(&mut self, slot: usize, stride: usize) -> impl Iterator<Item = &mut [u64]> {
        self.slab.block(slot).1.records_mut(stride)
    }

    /// Changes a key, whose memory is counted anew after it.
    pub fn change<T>(&mut self, layout: &Layout, slot: usize, change: impl FnOnce(&mut Entity) -> T) -> T {
        let (mut entity, _) = self.entity(layout, slot);
        let (bytes, events) = (entity.bytes(), entity.ring.len());
        let result = change(&mut entity);
        let (bytes_after, events_after) = (entity.bytes(), entity.ring.len());
        self.bytes = self.bytes - bytes + bytes_after;
        self.retained = self.retained - events + events_after;
        result
    }
}

fn answer(job: &Job, reads: &[(usize, &Step)], entity: &Entity, line: &mut [u64], faults: &mut u64) {
    let view = View {
        layout: entity.layout,
        slot: entity.slot,
        words: entity.words,
        ring: entity.ring,
        objects: entity.objects,
        texts: entity.texts,
        spills: entity.spills,
    };
    for (read, step) in reads {
        job.shape.set(line, *read, view.read(step, faults));
    }
}

fn newest(ring: &Ring, stride: usize) -> Option<i64> {
    (ring.len() > 0).then(|| ring.time(ring.end().wrapping_sub(1), stride))
}

fn first_after(ring: &Ring, stride: usize, boundary: i64) -> u32 {
    let mut place = ring.first;
    while place != ring.end() && ring.time(place, stride) <= boundary {
        place = place.wrapping_add(1);
    }
    place
}
