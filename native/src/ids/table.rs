//! The newest ids, in memory: entries in order of arrival, and a hash table of their numbers.

use std::hint::black_box;

use super::{GROUP, Span};

/// Slots are probed one after another and never freed, so several addresses of one hash are met in order of arrival.
pub(super) struct Table {
    /// The hash's upper half and the entry's number + 1; 0 is a free slot. At most half of them are taken.
    slots: Vec<u64>,
    entries: Vec<(u64, u64)>,
    span: Option<Span>,
}

const TAG: u64 = 0xffff_ffff_0000_0000;

impl Table {
    pub(super) fn with_capacity(ids: usize) -> Table {
        let slots = vec![0; (2 * ids.max(1)).next_power_of_two()];
        // The commit that fills a table goes beyond its end: there is room for as many as the slots take.
        let entries = Vec::with_capacity(slots.len() / 2);
        Table { slots, entries, span: None }
    }

    /// In memory that the system has cleared by now: it would do so in the middle of inserts, up to 2 MiB at a time.
    pub(super) fn touched(ids: usize) -> Table {
        let mut table = Table::with_capacity(ids);
        black_box(&mut table.slots).fill(0);
        let count = table.entries.capacity();
        black_box(&mut table.entries).resize(count, (0, 0));
        table.entries.clear();
        table
    }

    pub(super) fn insert(&mut self, hashes: &[u64], address: u64, span: Span) {
        self.grow(hashes.len());
        for group in hashes.chunks(GROUP) {
            self.touch_all(group);
            for hash in group {
                self.insert_slot(*hash, self.entries.len());
                self.entries.push((*hash, address));
            }
        }
        self.span = Some(self.span.map_or(span, |earlier| earlier.join(span)));
    }

    /// Append the addresses of a hash, newest first.
    pub(super) fn find(&self, hash: u64, found: &mut Vec<u64>) {
        let before = found.len();
        let mut slot = self.home(hash);
        while self.slots[slot] != 0 {
            self.check_slot(slot, hash, found);
            slot = self.after(slot);
        }
        found[before..].reverse();
    }

    pub(super) fn find_batch(&self, hashes: &[u64], found: &mut Vec<(usize, u64)>) {
        let mut addresses = Vec::new();
        for (group, start) in hashes.chunks(GROUP).zip((0..).step_by(GROUP)) {
            self.touch_all(group);
            for (hash, number) in group.iter().zip(start..) {
                self.find(*hash, &mut addresses);
                found.extend(addresses.drain(..).map(|address| (number, address)));
            }
        }
    }

    /// Bring the hash's home slot into the cache; the value is of no use but to the optimiser.
    #[inline]
    pub(super) fn touch(&self, hash: u64) -> u64 {
        self.slots[self.home(hash)]
    }

    /// The entries by hash; those of one hash in order of arrival.
    pub(super) fn sorted(&self) -> Vec<(u64, u64)> {
        let mut entries = self.entries.clone();
        entries.sort_by_key(|(hash, _)| *hash);
        entries
    }

    /// What the entries' commits span; absent where there is none.
    pub(super) fn span(&self) -> Option<Span> {
        self.span
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        (8 * self.slots.capacity() + 16 * self.entries.capacity()) as u64
    }

    fn home(&self, hash: u64) -> usize {
        hash as usize & (self.slots.len() - 1)
    }

    fn after(&self, slot: usize) -> usize {
        (slot + 1) & (self.slots.len() - 1)
    }

    fn check_slot(&self, slot: usize, hash: u64, found: &mut Vec<u64>) {
        let value = self.slots[slot];
        if value & TAG != hash & TAG {
            return;
        }
        let (entry_hash, address) = self.entries[(value & !TAG) as usize - 1];
        if entry_hash == hash {
            found.push(address);
        }
    }

    fn insert_slot(&mut self, hash: u64, number: usize) {
        let mut slot = self.home(hash);
        while self.slots[slot] != 0 {
            slot = self.after(slot);
        }
        self.slots[slot] = hash & TAG | (number as u64 + 1);
    }

    /// One commit can bring more ids than the table was made for.
    fn grow(&mut self, more: usize) {
        let wanted = 2 * (self.entries.len() + more);
        assert!(wanted < u32::MAX as usize, "a table numbers its entries in 32 bits");
        if wanted <= self.slots.len() {
            return;
        }
        self.slots = vec![0; wanted.next_power_of_two()];
        for number in 0..self.entries.len() {
            self.insert_slot(self.entries[number].0, number);
        }
    }

    fn touch_all(&self, hashes: &[u64]) {
        black_box(hashes.iter().fold(0, |values, hash| values ^ self.touch(*hash)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Span = Span { first: 1, last: 1, oldest_us: 0, newest_us: 0 };

    fn insert(table: &mut Table, hash: u64, address: u64) {
        table.insert(&[hash], address, SPAN);
    }

    fn find(table: &Table, hash: u64) -> Vec<u64> {
        let mut found = Vec::new();
        table.find(hash, &mut found);
        found
    }

    #[test]
    fn the_addresses_of_a_hash_are_found_newest_first_even_around_the_end_of_the_slots() {
        let mut table = Table::with_capacity(8);
        (0..8).for_each(|address| insert(&mut table, 15, address));
        assert_eq!(find(&table, 15), [7, 6, 5, 4, 3, 2, 1, 0]);
        assert!(find(&table, 31).is_empty());
        assert!(table.sorted().iter().map(|(_, address)| *address).eq(0..8));
    }

    #[test]
    fn hashes_with_one_home_and_one_upper_half_are_told_apart() {
        let mut table = Table::with_capacity(4);
        insert(&mut table, 7, 1);
        insert(&mut table, 7 + 8, 2);
        insert(&mut table, 7 + 16, 3);
        assert_eq!((find(&table, 7), find(&table, 15), find(&table, 23)), (vec![1], vec![2], vec![3]));
    }

    #[test]
    fn the_commit_that_fills_a_table_does_not_make_it_grow() {
        let mut table = Table::with_capacity(1_000);
        let memory_bytes = table.memory_bytes();
        (0..1_024).for_each(|address| insert(&mut table, address, address));
        assert_eq!((table.len(), table.memory_bytes()), (1_024, memory_bytes));
    }

    #[test]
    fn a_commit_larger_than_the_table_makes_it_grow() {
        let mut table = Table::with_capacity(4);
        let hashes: Vec<u64> =
            (0..1000u64).map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        table.insert(&hashes, 5, SPAN);
        table.insert(&hashes, 6, SPAN);
        let mut found = Vec::new();
        table.find_batch(&hashes, &mut found);
        let wanted: Vec<(usize, u64)> = (0..1000).flat_map(|number| [(number, 6), (number, 5)]).collect();
        assert_eq!(found, wanted);
    }
}
