//! What a key keeps beside its words: candidates for a minimum, counts of values, and what was freed.

use std::cmp::Ordering;
use std::collections::VecDeque;

use hashbrown::HashTable;

use super::layout::Blank;

/// An event that was freed, by its time and a value.
pub type Freed = (i64, i128);

#[derive(Clone, Debug)]
pub enum Object {
    /// Places in the ring, oldest first: each value is strictly better than all later ones in the window, so the
    /// first is the best. Every event enters and leaves at most once (a monotonic deque).
    Extreme(VecDeque<u32>),
    Unique(Counts<u64>),
    UniqueWide(Counts<i128>),
    First(Option<Freed>),
    /// Oldest first.
    Recent(Vec<Freed>),
    Best(Option<i128>),
}

impl Object {
    pub fn new(blank: &Blank) -> Object {
        match blank {
            Blank::Extreme => Object::Extreme(VecDeque::new()),
            Blank::Unique => Object::Unique(Counts::default()),
            Blank::UniqueWide => Object::UniqueWide(Counts::default()),
            Blank::First => Object::First(None),
            Blank::Recent => Object::Recent(Vec::new()),
            Blank::Best => Object::Best(None),
        }
    }

    /// The memory that it points to.
    pub fn bytes(&self) -> usize {
        match self {
            Object::Extreme(places) => places.capacity() * 4,
            Object::Unique(counts) => counts.0.allocation_size(),
            Object::UniqueWide(counts) => counts.0.allocation_size(),
            Object::Recent(events) => events.capacity() * size_of::<Freed>(),
            Object::First(_) | Object::Best(_) => 0,
        }
    }

    pub fn places(&mut self) -> &mut VecDeque<u32> {
        match self {
            Object::Extreme(places) => places,
            _ => unreachable!("the layout gave this place to an extreme"),
        }
    }

    /// Counts a value in or out; true if it was the first, or the last, of its kind.
    pub fn count(&mut self, value: i128, away: bool) -> bool {
        match self {
            Object::Unique(counts) => counts.count(value as u64, away),
            Object::UniqueWide(counts) => counts.count(value, away),
            _ => unreachable!("the layout gave this place to counts of values"),
        }
    }

    /// Replaces every value by another one.
    pub fn exchange(&mut self, mut by: impl FnMut(i128) -> i128) {
        match self {
            Object::Unique(counts) => {
                let values: Vec<(u64, u32)> = counts.0.drain().collect();
                for (value, count) in values {
                    counts.insert(by(value as i128) as u64, count);
                }
            }
            Object::First(Some((_, value))) | Object::Best(Some(value)) => *value = by(*value),
            Object::Recent(events) => events.iter_mut().for_each(|(_, value)| *value = by(*value)),
            Object::First(None) | Object::Best(None) | Object::Extreme(_) | Object::UniqueWide(_) => {}
        }
    }

    /// The counted values, in no order.
    pub fn values(&self) -> Vec<i128> {
        match self {
            Object::Unique(counts) => counts.0.iter().map(|(value, _)| *value as i128).collect(),
            Object::UniqueWide(counts) => counts.0.iter().map(|(value, _)| *value).collect(),
            _ => unreachable!("the layout gave this place to counts of values"),
        }
    }

    pub fn unique(&self) -> usize {
        match self {
            Object::Unique(counts) => counts.0.len(),
            Object::UniqueWide(counts) => counts.0.len(),
            _ => unreachable!("the layout gave this place to counts of values"),
        }
    }
}

/// How often each value occurs.
#[derive(Clone, Debug)]
pub struct Counts<K>(pub HashTable<(K, u32)>);

impl<K> Default for Counts<K> {
    fn default() -> Counts<K> {
        Counts(HashTable::new())
    }
}

pub trait Mixed: Copy + Eq {
    fn mixed(self) -> u64;
}

impl Mixed for u64 {
    fn mixed(self) -> u64 {
        mix(self)
    }
}

impl Mixed for i128 {
    fn mixed(self) -> u64 {
        mix(self as u64 ^ mix((self >> 64) as u64))
    }
}

impl<K: Mixed> Counts<K> {
    fn count(&mut self, value: K, away: bool) -> bool {
        if away { self.remove(value) } else { self.add(value) }
    }

    fn add(&mut self, value: K) -> bool {
        let hash = value.mixed();
        if let Some((_, count)) = self.0.find_mut(hash, |(known, _)| *known == value) {
            *count += 1;
            return false;
        }
        self.insert(value, 1);
        true
    }

    /// Enters a value that it does not have.
    pub fn insert(&mut self, value: K, count: u32) {
        self.0.insert_unique(value.mixed(), (value, count), |(value, _)| value.mixed());
    }

    fn remove(&mut self, value: K) -> bool {
        let Ok(mut entry) = self.0.find_entry(value.mixed(), |(known, _)| *known == value) else {
            unreachable!("a value that leaves was counted when it entered")
        };
        entry.get_mut().1 -= 1;
        if entry.get().1 > 0 {
            return false;
        }
        entry.remove();
        if self.0.len() * 8 < self.0.capacity() {
            self.0.shrink_to_fit(|(value, _)| value.mixed());
        }
        true
    }
}

/// The finaliser of SplitMix64.
fn mix(value: u64) -> u64 {
    let z = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Enters the newest event of a window.
pub fn push_newest(places: &mut VecDeque<u32>, place: u32, better: impl Fn(u32, u32) -> bool) {
    while places.back().is_some_and(|back| !better(*back, place)) {
        places.pop_back();
    }
    places.push_back(place);
}

/// Enters an event older than all others of a window.
pub fn push_oldest(places: &mut VecDeque<u32>, place: u32, better: impl Fn(u32, u32) -> bool) {
    if places.front().is_none_or(|front| better(place, *front)) {
        places.push_front(place);
    }
}

pub fn pop_oldest(places: &mut VecDeque<u32>, place: u32) {
    if places.front() == Some(&place) {
        places.pop_front();
    }
    if places.len() * 4 < places.capacity() && places.capacity() > 16 {
        places.shrink_to(places.len() * 2);
    }
}

/// Takes out the newest event; `before` gives the window's others that pass, newest first, down to a place.
pub fn pop_newest<I: Iterator<Item = u32>>(
    places: &mut VecDeque<u32>,
    place: u32,
    before: impl FnOnce(Option<u32>) -> I,
    better: impl Fn(u32, u32) -> bool,
) {
    if places.back() != Some(&place) {
        return;
    }
    places.pop_back();
    // What it had put out of the race is back in it.
    let kept = places.len();
    for place in before(places.back().copied()) {
        if places.len() == kept || better(place, places[places.len() - 1]) {
            places.push_back(place);
        }
    }
    places.make_contiguous()[kept..].reverse();
}

/// Folds a freed event into the oldest one, or the newest ones.
pub fn keep_first(first: &mut Option<Freed>, event: Freed) -> Option<Freed> {
    match first {
        Some(first) if first.0 <= event.0 => Some(event),
        _ => first.replace(event),
    }
}

/// Keeps the newest `limit` events; gives back the one that no longer fits.
pub fn keep_recent(recent: &mut Vec<Freed>, limit: usize, event: Freed) -> Option<Freed> {
    let at = recent.iter().rposition(|known| known.0 <= event.0).map_or(0, |at| at + 1);
    if recent.capacity() == recent.len() {
        recent.reserve_exact(1);
    }
    recent.insert(at, event);
    (recent.len() > limit).then(|| recent.remove(0))
}

/// Keeps the better of two values; gives back the other.
pub fn keep_best(
    best: &mut Option<i128>,
    value: i128,
    order: impl Fn(i128, i128) -> Ordering,
) -> Option<i128> {
    match best {
        Some(best) if order(*best, value) != Ordering::Greater => Some(value),
        _ => best.replace(value),
    }
}
