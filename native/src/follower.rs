//! State from the log: what start, the snapshotter and a replay of a log have in common.
//!
//! A follower reads commits in order and applies them to an engine. Where it meets decisions it computes their features
//! a second time and compares: the state is a pure function of the log, or something is wrong.

mod awaited;
mod gathered;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, RecordBatch, new_null_array};
use arrow_select::concat::concat_batches;
use serde::Serialize;

use self::awaited::{Awaited, AwaitedRows};
use self::gathered::{GATHERED_BYTES, Gathered};
use crate::disk::Disk;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::log::{self, Catalog, Commit, Position, Reader, StoredSection};
use crate::memory;
use crate::plan::{Plan, read_roles, roles_key};
use crate::snapshot::{self, Header, StoredStore, TopicTime};
use crate::windows::Store;

pub struct Follower {
    pub plan: Arc<Plan>,
    pub engine: Engine,
    pub undecided: Undecided,
    /// Decisions whose features came out otherwise the second time.
    pub mismatches: u64,
    pub compared: u64,
    pub sequence: u64,
    pub events: u64,
    pub passed_over: Vec<String>,
    /// Some of the state came from the log because the newest snapshot does not have it.
    pub rebuilt: bool,
    gathered: Gathered,
    awaited: AwaitedRows,
    /// Snapshots that were read back as they were written.
    sound: BTreeSet<u64>,
    disk: Arc<dyn Disk>,
    position: Option<Position>,
    reader: Option<Reader>,
    /// For each topic the newest event time before its first rows here; the least time where those are its first ever.
    begun: Vec<Option<i64>>,
    /// Topics of the log that the pipeline does not have at present.
    gone: Vec<TopicTime>,
    topics: HashMap<String, usize>,
    policies: HashMap<String, usize>,
}

/// Events whose decision is not in the log yet: by origin and offset, the address of their commit. Their policy may have
/// left the pipeline; where it comes back they are decided.
pub type Undecided = BTreeMap<(u16, i64), u64>;

/// A feature that needs more than the log still holds.
#[derive(Clone, Debug, Serialize)]
pub struct Incomplete {
    pub feature: String,
    /// It may lack what happened up to this event time.
    pub since_us: i64,
    /// From this event time on it is as if the log had never been cut; never, for one that reaches back to the beginning.
    pub complete_from_us: Option<i64>,
}

/// What the log's topic of a policy's decisions ends with.
const DECISIONS: &str = ".decisions";

/// How far something long has come: what it is, done, and of how many.
pub type Progress<'a> = &'a mut dyn FnMut(&str, u64, u64);

impl Follower {
    /// Begin at the newest snapshot, or at the log's start; what a changed pipeline misses is built from the log.
    ///
    /// A damaged snapshot is passed over with its reason: an older one, or the log, gives the same state. So is one that
    /// the disk does not give back, but not where the log could not make up for it: another start may read it.
    pub fn open(
        plan: Arc<Plan>,
        disk: Arc<dyn Disk>,
        threads: usize,
        progress: Progress,
    ) -> Result<Follower> {
        let (mut passed_over, mut unread) = (Vec::new(), false);
        for sequence in snapshot::list(disk.as_ref())?.into_iter().rev() {
            let mut follower = Follower::at_start(plan.clone(), disk.clone(), threads)?;
            let restored = snapshot::open(&disk, sequence);
            let restored = restored.and_then(|snapshot| follower.restore(snapshot, progress));
            memory::give_back();
            match restored {
                Ok(()) => return Ok(Follower { passed_over, ..follower }),
                Err(error @ (Error::Damaged { .. } | Error::Io { .. })) => {
                    unread |= matches!(error, Error::Io { .. });
                    passed_over.push(error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
        if unread && log::first_sequence(disk.as_ref())? > 1 {
            return Err(Error::invalid_with(
                format!(
                    "no snapshot can be read, and the log's beginning is gone: {}",
                    passed_over.join("; ")
                ),
                "see to the disk and start again; nothing was changed",
            ));
        }
        Ok(Follower { passed_over, ..Follower::at_start(plan, disk, threads)? })
    }

    fn at_start(plan: Arc<Plan>, disk: Arc<dyn Disk>, threads: usize) -> Result<Follower> {
        let names = |names: Vec<String>| names.into_iter().zip(0..).collect();
        Ok(Follower {
            engine: Engine::new(plan.clone(), threads)?,
            undecided: BTreeMap::new(),
            mismatches: 0,
            compared: 0,
            sequence: 0,
            events: 0,
            passed_over: Vec::new(),
            rebuilt: false,
            gathered: Gathered::default(),
            awaited: AwaitedRows::default(),
            sound: BTreeSet::new(),
            disk,
            position: None,
            reader: None,
            begun: vec![None; plan.topics.len()],
            gone: Vec::new(),
            topics: names(plan.topics.iter().map(|topic| topic.name.clone()).collect()),
            policies: names(
                plan.policies.iter().map(|policy| format!("{}{DECISIONS}", policy.name)).collect(),
            ),
            plan,
        })
    }

    /// Apply what is durable and new, at most so many commits; how many there were.
    pub fn advance(
        &mut self,
        commits_max: usize,
        mut seen: impl FnMut(&Commit) -> Result<()>,
    ) -> Result<usize> {
        let mut count = 0;
        while count < commits_max
            && let Some(commit) = self.reader()?.next()?
        {
            self.apply(&commit, true)?;
            seen(&commit)?;
            count += 1;
        }
        self.process_gathered()?;
        Ok(count)
    }

    /// Whether the log, at the last commit that was read, is of this pipeline: it begins with a note of its fingerprint.
    pub fn is_current(&mut self) -> Result<bool> {
        let noted = self.catalog()?.notes().get(STATE_NOTE).cloned();
        Ok(noted.is_none_or(|noted| noted == fingerprint(&self.plan)))
    }

    /// Write the state as it is now; see `snapshot::write`.
    pub fn write_snapshot(&mut self, piece: snapshot::Piece) -> Result<u64> {
        self.process_gathered()?;
        if self.mismatches > 0 {
            return Err(Error::invalid("the state came out otherwise than at the gate, and is not kept"));
        }
        if !self.is_current()? {
            return Err(Error::invalid("the log is of another pipeline here: this state is not kept"));
        }
        self.engine.settle();
        let position = self.reader()?.position();
        let undecided = self.named_undecided()?;
        let times =
            self.plan.topics.iter().enumerate().map(|(index, topic)| TopicTime {
                name: topic.name.clone(),
                newest: self.engine.newest(index),
            });
        let header = Header {
            position,
            sequence: self.sequence,
            fingerprint: Some(fingerprint(&self.plan)),
            topics: times.chain(self.gone.iter().cloned()).collect(),
            stores: (0..self.plan.stores.len()).map(|index| stored_store(&self.plan, index)).collect(),
            undecided,
        };
        let save = |index, out: &mut dyn Write| self.engine.save_store(index, out);
        snapshot::write(&self.disk, &header, &mut self.sound, piece, save)?;
        Ok(self.sequence)
    }

    /// As a snapshot has them, by their policies' names.
    fn named_undecided(&mut self) -> Result<Vec<(String, i64, u64)>> {
        let undecided: Vec<_> = self.undecided.iter().map(|(&key, &address)| (key, address)).collect();
        let catalog = self.catalog()?;
        let name = |origin: u16| Some(catalog.topic_of_origin(origin)?.strip_suffix(DECISIONS)?.to_owned());
        let named = undecided.into_iter();
        Ok(named.filter_map(|((origin, offset), address)| Some((name(origin)?, offset, address))).collect())
    }

    pub fn catalog(&mut self) -> Result<&Catalog> {
        Ok(self.reader()?.catalog())
    }

    fn reader(&mut self) -> Result<&mut Reader> {
        if self.reader.is_none() {
            self.reader = Some(Reader::open(self.disk.clone(), self.position)?);
        }
        Ok(self.reader.as_mut().expect("it was just opened"))
    }

    /// Take a commit's rows; the state has them after `process_gathered`.
    fn apply(&mut self, commit: &Commit, compare: bool) -> Result<()> {
        if self.sequence == 0 {
            self.begin_log(commit)?;
        }
        for section in &commit.sections {
            if section.origin > 0 {
                // Of a topic that has left the pipeline too: it may come back, with the policy that has to decide.
                let offsets = section.base_offset as i64..section.base_offset as i64 + section.rows as i64;
                let entered = offsets.map(|offset| ((section.origin, offset), commit.address.0));
                self.undecided.extend(entered);
            }
            if let Some(&topic) = self.topics.get(&*section.topic) {
                self.apply_events(section, topic, compare)?;
            } else if section.topic.ends_with(DECISIONS) {
                self.apply_decisions(&section.topic, section.batch()?)?;
            } else {
                self.apply_gone(section)?;
            }
        }
        self.sequence = commit.sequence;
        Ok(())
    }

    fn apply_decisions(&mut self, topic: &str, table: RecordBatch) -> Result<()> {
        let origin = self.catalog()?.origin(topic);
        for &offset in table.column(1).as_primitive::<Int64Type>().values() {
            self.undecided.remove(&(origin, offset));
        }
        if let Some(&policy) = self.policies.get(topic) {
            self.gathered.bytes += table.get_array_memory_size();
            self.gathered.decisions.push((policy, table));
            if self.gathered.bytes > GATHERED_BYTES {
                self.process_gathered()?;
            }
        }
        Ok(())
    }

    fn apply_events(&mut self, section: &StoredSection, topic: usize, compare: bool) -> Result<()> {
        let batch = as_defined(&self.plan, topic, &section.batch()?)?;
        let policy = self.policy_of(section.origin)?;
        let source = (topic, policy.filter(|_| compare));
        let base = section.base_offset as i64;
        if self.begun[topic].is_none() || !self.gathered.continues(source, base, batch.num_rows()) {
            self.process_gathered()?;
        }
        if self.begun[topic].is_none() {
            self.begin_topic(topic, section.before);
        }
        self.gathered.add(source, base, batch, section.marks.as_deref());
        self.events += section.rows as u64;
        Ok(())
    }

    /// Events of a topic that has left the pipeline: their newest time has to be known when it comes back.
    fn apply_gone(&mut self, section: &StoredSection) -> Result<()> {
        let (name, key) = (section.topic.to_string(), roles_key(&section.topic));
        let note = self.catalog()?.notes().get(&key).cloned().unwrap_or_default();
        let Some((_, _, time)) = read_roles(&key, &note) else { return Ok(()) };
        let batch = section.batch()?;
        let Some(times) = batch.column_by_name(time) else { return Ok(()) };
        let newest = times.as_primitive::<TimestampMicrosecondType>().values().iter().copied().max();
        let newest = newest.max(Some(section.before).filter(|&before| before > i64::MIN));
        match self.gone.iter_mut().find(|gone| gone.name == name) {
            Some(gone) => gone.newest = gone.newest.max(newest),
            None => self.gone.push(TopicTime { name, newest }),
        }
        Ok(())
    }

    /// Let the events that were gathered pass the engine, then compare the decisions that came by since.
    fn process_gathered(&mut self) -> Result<()> {
        let Gathered { source, base, batches, marks, decisions, .. } = std::mem::take(&mut self.gathered);
        if let Some((topic, compared)) = source {
            let sound = compared.map(|policy| self.sound_columns(policy));
            // Some may have been stored when a field of theirs was still required.
            let batch = concat_batches(&self.plan.topics[topic].schema().arrow(), &batches)
                .map_err(|error| Error::invalid(format!("could not join stored events: {error}")))?;
            let wanted: Vec<usize> =
                compared.iter().map(|&policy| self.plan.policies[policy].features).collect();
            let mut processed = self.engine.process(topic, &batch, Some(&marks), &wanted)?;
            if let (Some(policy), Some(features), Some(sound)) = (compared, processed.features.pop(), sound) {
                let features = features.into_iter().zip(sound).map(|(column, sound)| sound.then_some(column));
                self.awaited.add(Awaited {
                    policy,
                    base,
                    rows: batch.num_rows(),
                    left: batch.num_rows(),
                    features: features.collect(),
                });
            }
        }
        for (policy, table) in decisions {
            self.compare(policy, &table);
        }
        Ok(())
    }

    /// Which of a policy's columns see all that they should: another may differ from what the gate, which had seen more,
    /// has decided by.
    fn sound_columns(&self, policy: usize) -> Vec<bool> {
        let set = &self.plan.features[self.plan.policies[policy].features];
        let whole = |&(store, read): &(usize, usize)| {
            self.engine.store(store).gap(read, self.engine.evict_before(store)).is_none()
        };
        let mut sound: Vec<bool> = set.reads.iter().map(whole).collect();
        let all = sound.iter().all(|sound| *sound);
        // What is derived may be from any of them.
        sound.resize(set.columns.len(), all);
        sound
    }

    /// The policy that an event entered by, if the pipeline still has it.
    fn policy_of(&mut self, origin: u16) -> Result<Option<usize>> {
        let topic = self.catalog()?.topic_of_origin(origin).map(Arc::<str>::from);
        Ok(topic.and_then(|topic| self.policies.get(&*topic).copied()))
    }

    /// Compare the features of decisions, where they were made as this pipeline makes them, with those computed here.
    fn compare(&mut self, policy: usize, decisions: &RecordBatch) {
        let version = &self.plan.policies[policy].version;
        let text = |name: &str| decisions.column_by_name(name).map(|column| column.as_string::<i32>());
        let (Some(versions), Some(causes)) = (text("policy_version"), text("cause")) else { return };
        let offsets = decisions.column(1).as_primitive::<Int64Type>().values();
        // What start decides about an event has no features.
        let made_here = |row: usize| {
            versions.value(row) == version && (causes.is_null(row) || causes.value(row) != "restart")
        };
        let mut row = 0;
        while row < offsets.len() {
            let run = self.awaited.run(policy, &offsets[row..]);
            let Some((features, rows)) = run.filter(|_| made_here(row)) else {
                row += 1;
                continue;
            };
            let rows = (row..row + rows).take_while(|&row| made_here(row)).count();
            let logged = decisions.columns()[5..].iter().map(|column| column.slice(row, rows));
            let same = features
                .iter()
                .zip(logged)
                .filter_map(|(computed, logged)| Some((computed.as_ref()?, logged)))
                .all(|(computed, logged)| computed.slice(0, rows).to_data() == logged.to_data());
            self.compared += rows as u64;
            self.mismatches += !same as u64;
            row += rows;
        }
        self.awaited.forget(policy, offsets);
    }

    // Restoring.

    fn restore(&mut self, mut snapshot: snapshot::Snapshot, progress: Progress) -> Result<()> {
        let header = snapshot.header.clone();
        self.position = Some(header.position);
        self.sequence = header.sequence;
        self.check_pipeline(&header, &snapshot.path)?;
        self.restore_times(&header);
        self.restore_undecided(&header)?;
        let mut rebuild: BTreeMap<usize, Option<snapshot::Place>> =
            (0..self.plan.stores.len()).map(|index| (index, None)).collect();
        for (done, old) in header.stores.iter().enumerate() {
            progress("restoring state", done as u64, header.stores.len() as u64);
            let place = snapshot.next_store()?;
            let Some(index) = self.same_store(old) else { continue };
            let plan = &self.plan.stores[index].plan;
            let loaded = Store::load_for(plan, &mut snapshot.read(place), self.engine.evict_before(index));
            match loaded.map_err(|error| in_snapshot(&snapshot.path, error))? {
                Some(store) => {
                    self.engine.replace_store(index, store);
                    rebuild.remove(&index);
                }
                None => _ = rebuild.insert(index, Some(place)),
            }
        }
        if rebuild.is_empty() && !self.has_unknown_topic()? {
            return Ok(());
        }
        self.rebuild(rebuild, &snapshot, progress)
    }

    /// A snapshot is of the pipeline that the log was of at its commit. Another one's would count as if it held all that
    /// the log's pipeline needs, and the log could be trimmed too early.
    fn check_pipeline(&mut self, header: &Header, path: &str) -> Result<()> {
        let noted = self.catalog()?.notes().get(STATE_NOTE);
        match (noted, &header.fingerprint) {
            (Some(noted), Some(written)) if noted != written => {
                Err(Error::damaged(path, 0, "it is of another pipeline than the log was at its commit"))
            }
            _ => Ok(()),
        }
    }

    /// Whether the log has rows of a topic whose time the snapshot does not know: it had left the pipeline for a while.
    fn has_unknown_topic(&mut self) -> Result<bool> {
        let plan = self.plan.clone();
        let unknown: Vec<bool> = self.begun.iter().map(Option::is_none).collect();
        let catalog = self.catalog()?;
        let rows = |topic: usize| catalog.next_offset(&plan.topics[topic].name) > 0;
        Ok((0..unknown.len()).any(|topic| unknown[topic] && rows(topic)))
    }

    fn restore_times(&mut self, header: &Header) {
        for topic in &header.topics {
            match self.topics.get(&topic.name) {
                Some(&index) => {
                    self.engine.set_newest(index, topic.newest);
                    self.begun[index] = topic.newest.map(|_| i64::MIN);
                }
                None => self.gone.push(topic.clone()),
            }
        }
    }

    fn restore_undecided(&mut self, header: &Header) -> Result<()> {
        for (name, offset, address) in &header.undecided {
            let origin = self.catalog()?.origin(&format!("{name}{DECISIONS}"));
            self.undecided.insert((origin, *offset), *address);
        }
        Ok(())
    }

    fn same_store(&self, old: &StoredStore) -> Option<usize> {
        (0..self.plan.stores.len()).find(|&index| stored_store(&self.plan, index).same_events(old))
    }

    /// Build from the log what the snapshot does not have, up to the snapshot's commit.
    fn rebuild(
        &mut self,
        stores: BTreeMap<usize, Option<snapshot::Place>>,
        snapshot: &snapshot::Snapshot,
        progress: Progress,
    ) -> Result<()> {
        let indices: Vec<usize> = stores.keys().copied().collect();
        let mut builder = Follower::at_start(self.plan.clone(), self.disk.clone(), 1)?;
        builder.engine.limit_to(&indices);
        while builder.sequence < self.sequence {
            let Some(commit) = builder.reader()?.next()? else { break };
            builder.apply(&commit, false)?;
            if commit.sequence % 1024 == 0 {
                progress("building new features from the log", commit.sequence, self.sequence);
            }
        }
        builder.process_gathered()?;
        for topic in 0..self.plan.topics.len() {
            match self.engine.newest(topic) {
                Some(newest) => builder.end_topic(topic, newest),
                None => self.meet_topic(topic, &builder),
            }
        }
        builder.engine.settle();
        for (index, saved) in stores {
            let rebuilt = builder.engine.take_store(index)?;
            let plan = &self.plan.stores[index];
            let store = match (builder.begun[plan.source], saved) {
                (Some(begin), Some(saved)) if begin > i64::MIN => {
                    let loaded = Store::load_with(&plan.plan, &mut snapshot.read(saved), rebuilt, begin);
                    loaded.map_err(|error| in_snapshot(&snapshot.path, error))?
                }
                _ => rebuilt,
            };
            self.engine.replace_store(index, store);
        }
        self.rebuilt = true;
        Ok(())
    }

    /// The first commit that the log has. Of a topic that had rows before, these are gone: how new they were is known with
    /// its first rows that are left, if any, and until then they may be as new as this commit would have let in.
    fn begin_log(&mut self, commit: &Commit) -> Result<()> {
        let plan = self.plan.clone();
        for (topic, about) in plan.topics.iter().enumerate() {
            let here = commit.sections.iter().find(|section| *section.topic == *about.name);
            let catalog = self.catalog()?;
            if here.map_or_else(|| catalog.next_offset(&about.name), |section| section.base_offset) > 0 {
                self.lack_until(topic, commit.time_us.saturating_add(about.ahead_us));
            }
        }
        Ok(())
    }

    /// A topic's first rows that the log has: all events with an effective time after `before` are there.
    fn begin_topic(&mut self, topic: usize, before: i64) {
        self.begun[topic] = Some(before);
        if before > i64::MIN {
            self.engine.set_newest(topic, Some(before));
            self.lack_until(topic, before);
        }
    }

    fn lack_until(&mut self, topic: usize, time_us: i64) {
        for index in (0..self.plan.stores.len()).filter(|&index| self.plan.stores[index].source == topic) {
            self.engine.store_mut(index).begin_after(time_us);
        }
    }

    /// The log up to a snapshot has been read: where the snapshot knows of a topic's events and the log has none left,
    /// it has none of them.
    fn end_topic(&mut self, topic: usize, newest: i64) {
        if self.begun[topic].is_none() {
            self.begin_topic(topic, newest);
        }
    }

    fn meet_topic(&mut self, topic: usize, builder: &Follower) {
        self.engine.set_newest(topic, builder.engine.newest(topic));
        self.begun[topic] = builder.begun[topic].map(|_| i64::MIN);
    }

    /// Features that do not see all that they should, because the log had been cut when they were built.
    pub fn incomplete(&self) -> Vec<Incomplete> {
        let mut incomplete = Vec::new();
        for index in 0..self.plan.stores.len() {
            for gap in self.engine.store(index).gaps(self.engine.evict_before(index)) {
                incomplete.extend(self.names_of(index, gap.read).map(|feature| Incomplete {
                    feature,
                    since_us: gap.since,
                    complete_from_us: gap.complete_from,
                }));
            }
        }
        incomplete
    }

    fn names_of(&self, store: usize, read: usize) -> impl Iterator<Item = String> {
        self.plan.features.iter().flat_map(move |set| {
            let places = set.reads.iter().enumerate().filter(move |(_, place)| **place == (store, read));
            places.map(|(column, _)| set.columns[column].name.clone())
        })
    }
}

/// A saved state does not know its file.
fn in_snapshot(path: &str, error: Error) -> Error {
    match error {
        Error::Damaged { offset, what, .. } => Error::damaged(path, offset, what),
        Error::Io { source, .. } => Error::io(format!("could not read {path}"), source),
        other => other,
    }
}

/// The log's note of the pipeline that its state is of, from the commit on that brings it.
pub const STATE_NOTE: &str = "state";

/// What the state of a pipeline is: equal for pipelines that remember the same of the same topics.
pub fn fingerprint(plan: &Plan) -> String {
    let topics: Vec<_> = plan.topics.iter().map(|topic| (&topic.name, topic.lateness_us)).collect();
    let stores: Vec<_> = (0..plan.stores.len()).map(|index| stored_store(plan, index)).collect();
    let policies: Vec<_> = plan.policies.iter().map(|policy| &policy.name).collect();
    let text = serde_json::to_vec(&(topics, stores, policies)).expect("plans are plain data");
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&text))
}

fn stored_store(plan: &Plan, index: usize) -> StoredStore {
    let keyed = &plan.stores[index];
    let source = plan.topics[keyed.source].name.clone();
    let lateness_us = plan.topics[keyed.source].lateness_us;
    StoredStore { source, key: keyed.key.clone(), lateness_us, plan: keyed.plan.clone() }
}

/// A stored batch with the columns that its topic has now: fields that came later are null.
pub fn as_defined(plan: &Plan, topic: usize, batch: &RecordBatch) -> Result<RecordBatch> {
    let fields = &plan.topics[topic].fields;
    let same = batch.num_columns() == fields.len()
        && batch.schema_ref().fields().iter().zip(fields).all(|(stored, field)| *stored.name() == field.name);
    if same {
        return Ok(batch.clone());
    }
    let columns = fields
        .iter()
        .map(|field| match batch.column_by_name(&field.name) {
            Some(column) => column.clone(),
            None => new_null_array(&field.kind.arrow(), batch.num_rows()),
        })
        .collect();
    RecordBatch::try_new(plan.topics[topic].schema().arrow(), columns)
        .map_err(|error| Error::invalid(format!("stored events do not fit the topic's schema: {error}")))
}
