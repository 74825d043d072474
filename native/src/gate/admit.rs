//! Which of arriving events are new: their ids against this cycle, and against the log by way of the id index.

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::DataType;

use super::core::{Core, Cycle};
use super::error_body;
use super::said::unreadable;
use crate::decode::content_equal;
use crate::engine::event_times;
use crate::error::{Error, Result};
use crate::ids;
use crate::log::Address;
use crate::plan::TopicPlan;

/// What is known of one arriving event.
pub(super) enum Seen {
    New,
    /// The same event came earlier in this cycle: the group that it is in, and its row there.
    InCycle(usize, usize),
    /// The same event is in the log.
    Before(SeenEvent),
    /// It is not taken: an HTTP status, and the error as a body.
    Refused(u16, Vec<u8>),
}

#[derive(Clone)]
pub(super) struct SeenEvent {
    /// 0 for the topic's own door, else 1 + the policy that decided it.
    pub origin: u16,
    pub offset: i64,
    /// Where its commit is, and those of what was decided and told about it.
    pub addresses: Vec<u64>,
}

/// A batch that was admitted in this cycle, and what became of its new rows.
pub(super) struct Group {
    topic: usize,
    origin: u16,
    batch: RecordBatch,
    pub taken: Taken,
    /// For each row its place among the new ones.
    pub places: Vec<usize>,
}

#[derive(Clone, Copy)]
pub(super) enum Taken {
    /// Not yet, or there were none.
    Nothing,
    /// Events, from this offset on.
    Events(i64),
    /// A table of the cycle's decisions.
    Decided(usize),
    /// They wait for their model under this number.
    Pending(u64),
}

/// Where in this cycle an id stands that is new.
pub(super) struct Fresh {
    pub hash: u64,
    pub group: usize,
    pub row: usize,
}

impl Core {
    /// Judge every row of a batch; new ones count as seen from here on, where there is room for them.
    pub(super) fn admit(
        &self,
        cycle: &mut Cycle,
        topic: usize,
        origin: u16,
        batch: &RecordBatch,
    ) -> Result<Vec<Seen>> {
        let about = &self.plan.topics[topic];
        let ids = batch.column(about.id);
        let hashes = id_hashes(&about.name, ids);
        let mut candidates = Vec::new();
        let mut unread = self.ids.find_batch(&hashes, &mut candidates).into_iter().peekable();
        let group = cycle.groups.len();
        let (taken, places) = (Taken::Nothing, Vec::new());
        cycle.groups.push(Group { topic, origin, batch: batch.clone(), taken, places });
        cycle.fresh.reserve(batch.num_rows(), |fresh| fresh.hash);
        let mut seen = Vec::with_capacity(batch.num_rows());
        let mut next = 0;
        for (row, &time) in event_times(&self.plan, topic, batch).iter().enumerate() {
            let first = next;
            while next < candidates.len() && candidates[next].0 == row {
                next += 1;
            }
            // What retention has removed is forgotten with it, whatever the index still knows.
            let kept = candidates[first..next].iter().map(|&(_, address)| address);
            let addresses: Vec<u64> = kept.filter(|&address| self.log.keeps(Address(address))).collect();
            let seen_before = match std::iter::from_fn(|| unread.next_if(|(unread, _)| *unread == row)).last()
            {
                Some((_, error)) => Err(error),
                None => self.seen_before(cycle, topic, origin, batch, (row, hashes[row]), &addresses),
            };
            let judged = match seen_before {
                Ok(Some(judged)) => judged,
                Err(error) => {
                    let (status, body) = unreadable(error)?;
                    Seen::Refused(status, body)
                }
                Ok(None) => ahead(about, cycle.now_us, time)
                    .unwrap_or_else(|| cycle.seen_now(about.id, origin, hashes[row], (group, row))),
            };
            // What a full disk keeps out is not what a later event of this cycle repeats.
            if matches!(judged, Seen::New) && self.stats.full.is_none() {
                cycle.see(Fresh { hash: hashes[row], group, row });
            }
            seen.push(judged);
        }
        cycle.groups[group].places = places_of_new(&seen);
        Ok(seen)
    }

    /// Whether an event's id is in the log already, whatever is said of it there, and be it that it cannot be read.
    pub(super) fn is_in_log(
        &self,
        cycle: &mut Cycle,
        topic: usize,
        origin: u16,
        batch: &RecordBatch,
        (row, hash): (usize, u64),
    ) -> Result<bool> {
        let mut addresses = Vec::new();
        let found = self.ids.find(hash, &mut addresses);
        addresses.retain(|&address| self.log.keeps(Address(address)));
        match found.and_then(|()| self.seen_before(cycle, topic, origin, batch, (row, hash), &addresses)) {
            Err(Error::Damaged { .. } | Error::Io { .. }) => Ok(true),
            seen => Ok(seen?.is_some()),
        }
    }

    fn seen_before(
        &self,
        cycle: &mut Cycle,
        topic: usize,
        origin: u16,
        batch: &RecordBatch,
        (row, hash): (usize, u64),
        addresses: &[u64],
    ) -> Result<Option<Seen>> {
        let about = &self.plan.topics[topic];
        let since = cycle.now_us.saturating_sub(about.retain_us);
        for &address in addresses {
            let commit = self.commit(&mut cycle.commits, address)?;
            if commit.time_us <= since {
                continue;
            }
            for (place, section) in commit.sections_of(&about.name) {
                let stored = self.table(&mut cycle.commits, address, place, Some(topic))?;
                let Some(found) = stored.find_id(about, hash, batch.column(about.id), row) else { continue };
                let event = SeenEvent {
                    origin: section.origin,
                    offset: section.base_offset as i64 + found as i64,
                    addresses: addresses.to_vec(),
                };
                let same = content_equal(&stored.batch, found, batch, row);
                return Ok(Some(judge(event, origin, same)));
            }
        }
        Ok(None)
    }
}

impl Cycle {
    fn seen_now(&self, id: usize, origin: u16, hash: u64, at: (usize, usize)) -> Seen {
        let Group { topic, batch, .. } = &self.groups[at.0];
        // The hash alone does not tell: ids of other topics, or other ids of this one, may have the same.
        let same = |fresh: &Fresh| {
            let Group { topic: first_topic, batch: first, .. } = &self.groups[fresh.group];
            fresh.hash == hash
                && first_topic == topic
                && same_id(first.column(id), fresh.row, batch.column(id), at.1)
        };
        let Some(&Fresh { group, row, .. }) = self.fresh.find(hash, same) else { return Seen::New };
        let Group { origin: first_origin, batch: first, .. } = &self.groups[group];
        if *first_origin != origin {
            return other_door();
        }
        if content_equal(first, row, batch, at.1) { Seen::InCycle(group, row) } else { conflict() }
    }

    /// The offset of an event that its topic's door has taken in this cycle.
    pub fn offset(&self, group: usize, row: usize) -> i64 {
        match self.groups[group].taken {
            Taken::Events(first) => first + self.groups[group].places[row] as i64,
            _ => unreachable!("the first attempt was an event of the topic's door"),
        }
    }

    fn see(&mut self, fresh: Fresh) {
        self.fresh.insert_unique(fresh.hash, fresh, |seen| seen.hash);
    }
}

/// For each row its place among the new ones.
fn places_of_new(seen: &[Seen]) -> Vec<usize> {
    let mut next = 0;
    let place = |seen: &Seen| {
        next += usize::from(matches!(seen, Seen::New));
        next.wrapping_sub(1)
    };
    seen.iter().map(place).collect()
}

fn judge(event: SeenEvent, origin: u16, same: bool) -> Seen {
    if event.origin != origin {
        return other_door();
    }
    if same { Seen::Before(event) } else { conflict() }
}

/// Why an event of this time is not taken: the gate's clock is too far behind it.
pub(super) fn ahead(about: &TopicPlan, now_us: i64, time: i64) -> Option<Seen> {
    (time > now_us.saturating_add(about.ahead_us)).then(|| {
        let field = &about.fields[about.time].name;
        let message = format!("field \"{field}\": the event's time is too far ahead of the clock here");
        Seen::Refused(422, error_body("ahead_of_clock", &message, Some(field)))
    })
}

fn conflict() -> Seen {
    let message = "this id was used before, for an event with other content";
    Seen::Refused(409, error_body("id_conflict", message, None))
}

fn other_door() -> Seen {
    let message = "this event entered before through another door: its topic's, or another policy's";
    Seen::Refused(409, error_body("entered_elsewhere", message, None))
}

pub(super) enum Id<'a> {
    Int(i64),
    Text(&'a str),
}

pub(super) fn id_value(column: &ArrayRef, row: usize) -> Id<'_> {
    match column.data_type() {
        DataType::Int64 => Id::Int(column.as_primitive::<Int64Type>().value(row)),
        _ => Id::Text(column.as_string::<i32>().value(row)),
    }
}

/// Of a topic's name and an id of it.
pub(super) fn id_hash(topic: &str, id: &Id) -> u64 {
    seeded_hash(seed(topic), id)
}

pub(super) fn id_hashes(topic: &str, column: &ArrayRef) -> Vec<u64> {
    let seed = seed(topic);
    (0..column.len()).map(|row| seeded_hash(seed, &id_value(column, row))).collect()
}

fn seeded_hash(seed: u16, id: &Id) -> u64 {
    match id {
        Id::Int(id) => ids::hash_int64(seed, *id),
        Id::Text(id) => ids::hash_text(seed, id),
    }
}

/// By the topic's name, so that hashes stay when a pipeline's topics change their order. Two topics with one seed do
/// no harm: what a hash leads to is read and compared.
fn seed(topic: &str) -> u16 {
    ids::hash_text(0, topic) as u16
}

pub(super) fn same_id(one: &ArrayRef, row: usize, other: &ArrayRef, other_row: usize) -> bool {
    match (id_value(one, row), id_value(other, other_row)) {
        (Id::Int(one), Id::Int(other)) => one == other,
        (Id::Text(one), Id::Text(other)) => one == other,
        _ => false,
    }
}

/// The row of a column that holds the same id.
pub(super) fn find_id(stored: &ArrayRef, ids: &ArrayRef, row: usize) -> Option<usize> {
    (0..stored.len()).find(|&candidate| same_id(stored, candidate, ids, row))
}
