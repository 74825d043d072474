//! State from the log: what start, the snapshotter and a replay of a log have in common.
//!
//! A follower reads commits in order and applies them to an engine. Where it meets decisions it computes their features
//! a second time and compares: the state is a pure function of the log, or something is wrong.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef, RecordBatch, new_null_array};
use serde::Serialize;

use crate::disk::Disk;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::log::{self, Catalog, Commit, Position, Reader, StoredSection};
use crate::plan::Plan;
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
    pub incomplete: Vec<Incomplete>,
    pub passed_over: Vec<String>,
    disk: Arc<dyn Disk>,
    position: Option<Position>,
    reader: Option<Reader>,
    topics: HashMap<String, usize>,
    policies: HashMap<String, usize>,
}

/// Events whose decision is not in the log yet: by policy and offset, the address of their commit.
pub type Undecided = BTreeMap<(usize, i64), u64>;

/// A feature that needs more than the log still holds.
#[derive(Clone, Debug, Serialize)]
pub struct Incomplete {
    pub feature: String,
    /// From this event time on it is as if the log had never been cut.
    pub complete_from_us: Option<i64>,
}

/// How far something long has come: what it is, done, and of how many.
pub type Progress<'a> = &'a mut dyn FnMut(&str, u64, u64);

impl Follower {
    /// Begin at the newest snapshot, or at the log's start; what a changed pipeline misses is built from the log.
    pub fn open(
        plan: Arc<Plan>,
        disk: Arc<dyn Disk>,
        threads: usize,
        progress: Progress,
    ) -> Result<Follower> {
        let mut follower = Follower::at_start(plan, disk, threads)?;
        let mut passed_over = Vec::new();
        if let Some(snapshot) = snapshot::open_newest(&follower.disk, &mut passed_over)? {
            follower.restore(snapshot, progress)?;
        } else {
            follower.note_cut_log()?;
        }
        follower.passed_over = passed_over;
        Ok(follower)
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
            incomplete: Vec::new(),
            passed_over: Vec::new(),
            disk,
            position: None,
            reader: None,
            topics: names(plan.topics.iter().map(|topic| topic.name.clone()).collect()),
            policies: names(
                plan.policies.iter().map(|policy| format!("{}.decisions", policy.name)).collect(),
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
        for count in 0..commits_max {
            let Some(commit) = self.reader()?.next()? else { return Ok(count) };
            self.apply(&commit, true)?;
            seen(&commit)?;
        }
        Ok(commits_max)
    }

    /// Write the state as it is now.
    pub fn write_snapshot(&mut self) -> Result<u64> {
        if self.mismatches > 0 {
            return Err(Error::invalid("the state came out otherwise than at the gate, and is not kept"));
        }
        let position = self.reader()?.position();
        let header = Header {
            position,
            sequence: self.sequence,
            topics: (self.plan.topics.iter().enumerate())
                .map(|(index, topic)| TopicTime {
                    name: topic.name.clone(),
                    newest: self.engine.newest(index),
                })
                .collect(),
            stores: (0..self.plan.stores.len()).map(|index| stored_store(&self.plan, index)).collect(),
            undecided: (self.undecided.iter())
                .map(|(&(policy, offset), &address)| {
                    (self.plan.policies[policy].name.clone(), offset, address)
                })
                .collect(),
        };
        snapshot::write(&self.disk, &header, |index, out| self.engine.save_store(index, out))?;
        Ok(self.sequence)
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

    fn apply(&mut self, commit: &Commit, compare: bool) -> Result<()> {
        for section in &commit.sections {
            if let Some(&topic) = self.topics.get(&*section.topic) {
                self.apply_events(commit, section, topic, compare)?;
            } else if let Some(&policy) = self.policies.get(&*section.topic) {
                for &offset in section.batch()?.column(1).as_primitive::<Int64Type>().values() {
                    self.undecided.remove(&(policy, offset));
                }
            }
        }
        self.sequence = commit.sequence;
        Ok(())
    }

    fn apply_events(
        &mut self,
        commit: &Commit,
        section: &StoredSection,
        topic: usize,
        compare: bool,
    ) -> Result<()> {
        let batch = as_defined(&self.plan, topic, &section.batch()?)?;
        if self.engine.newest(topic).is_none() && section.before != i64::MIN {
            self.engine.set_newest(topic, Some(section.before));
        }
        let policy =
            (section.origin as usize).checked_sub(1).filter(|&policy| policy < self.plan.policies.len());
        let decisions = match policy {
            Some(policy) if compare => self.decisions_of(commit, policy)?,
            _ => None,
        };
        let wanted: Vec<usize> =
            decisions.iter().map(|_| self.plan.policies[policy.unwrap_or(0)].features).collect();
        let processed = self.engine.process(topic, &batch, section.marks.as_deref(), &wanted)?;
        if let (Some(decisions), Some(features)) = (decisions, processed.features.first()) {
            self.compare(&decisions, features);
        }
        if let Some(policy) = policy {
            let offsets = section.base_offset as i64..section.base_offset as i64 + section.rows as i64;
            self.undecided.extend(offsets.map(|offset| ((policy, offset), commit.address.0)));
        }
        self.events += section.rows as u64;
        Ok(())
    }

    /// The decisions that were logged with these events, where they were made as this pipeline makes them.
    fn decisions_of(&self, commit: &Commit, policy: usize) -> Result<Option<RecordBatch>> {
        let about = &self.plan.policies[policy];
        let topic = format!("{}.decisions", about.name);
        let Some(section) = commit.sections.iter().find(|section| *section.topic == *topic) else {
            return Ok(None);
        };
        let table = section.batch()?;
        let versions = table.column_by_name("policy_version").map(|column| column.as_string::<i32>().clone());
        let same =
            versions.is_some_and(|versions| versions.iter().all(|version| version == Some(&about.version)));
        Ok((same && about.model.is_none()).then_some(table))
    }

    fn compare(&mut self, decisions: &RecordBatch, features: &[ArrayRef]) {
        self.compared += decisions.num_rows() as u64;
        let logged = &decisions.columns()[5..5 + features.len()];
        let same =
            features.iter().zip(logged).all(|(computed, logged)| computed.to_data() == logged.to_data());
        self.mismatches += !same as u64;
    }

    // Restoring.

    fn restore(&mut self, mut snapshot: snapshot::Snapshot, progress: Progress) -> Result<()> {
        let header = snapshot.header.clone();
        self.position = Some(header.position);
        self.sequence = header.sequence;
        let mut restored = vec![false; self.plan.stores.len()];
        for (done, old) in header.stores.iter().enumerate() {
            progress("restoring state", done as u64, header.stores.len() as u64);
            let bytes = snapshot.next_store()?;
            let Some(index) = self.same_store(old) else { continue };
            let plan = self.plan.stores[index].plan.clone();
            if old.plan == plan {
                self.engine.replace_store(index, Store::load(plan, &mut bytes.as_slice())?);
                restored[index] = true;
            }
        }
        for topic in &header.topics {
            if let Some(&index) = self.topics.get(&topic.name) {
                self.engine.set_newest(index, topic.newest);
            }
        }
        self.restore_undecided(&header);
        let rebuild: Vec<usize> = (0..restored.len()).filter(|&index| !restored[index]).collect();
        if rebuild.is_empty() { Ok(()) } else { self.rebuild(&rebuild, progress) }
    }

    fn restore_undecided(&mut self, header: &Header) {
        for (name, offset, address) in &header.undecided {
            if let Some(policy) = self.plan.policies.iter().position(|policy| policy.name == *name) {
                self.undecided.insert((policy, *offset), *address);
            }
        }
    }

    /// The store of this pipeline with the same source and key.
    fn same_store(&self, old: &StoredStore) -> Option<usize> {
        (0..self.plan.stores.len()).find(|&index| {
            let new = stored_store(&self.plan, index);
            (&new.source, &new.key, &new.plan.key) == (&old.source, &old.key, &old.plan.key)
        })
    }

    /// Build from the log what the snapshot does not have, up to the snapshot's commit.
    fn rebuild(&mut self, stores: &[usize], progress: Progress) -> Result<()> {
        let mut builder = Follower::at_start(self.plan.clone(), self.disk.clone(), 1)?;
        builder.engine.limit_to(stores);
        while builder.sequence < self.sequence {
            let Some(commit) = builder.reader()?.next()? else { break };
            builder.apply(&commit, false)?;
            if commit.sequence % 1024 == 0 {
                progress("building new features from the log", commit.sequence, self.sequence);
            }
        }
        for &index in stores {
            self.engine.replace_store(index, builder.engine.take_store(index)?);
        }
        if log::first_sequence(self.disk.as_ref())? > 1 {
            stores.iter().for_each(|&index| self.note_incomplete(index, &builder));
        }
        Ok(())
    }

    /// Without a snapshot, a log whose beginning was removed leaves every feature short of its past.
    fn note_cut_log(&mut self) -> Result<()> {
        if log::first_sequence(self.disk.as_ref())? > 1 {
            let builder = Follower::at_start(self.plan.clone(), self.disk.clone(), 1)?;
            for index in 0..self.plan.stores.len() {
                self.note_incomplete(index, &builder);
            }
        }
        Ok(())
    }

    fn note_incomplete(&mut self, store: usize, builder: &Follower) {
        let plan = self.plan.clone();
        let begin = builder.first_time(plan.stores[store].source);
        for set in &plan.features {
            for (column, &(_, read)) in set.reads.iter().enumerate().filter(|(_, (of, _))| *of == store) {
                let about = &plan.stores[store].plan.reads[read];
                let span = about.length_us.map(|length| length + about.delay_us);
                self.incomplete.push(Incomplete {
                    feature: set.columns[column].name.clone(),
                    complete_from_us: begin.zip(span).map(|(begin, span)| begin + span),
                });
            }
        }
    }

    /// The time at which the log's first remaining events of a topic stand.
    fn first_time(&self, topic: usize) -> Option<i64> {
        let mut reader = Reader::open(self.disk.clone(), None).ok()?;
        let name = &self.plan.topics[topic].name;
        while let Some(commit) = reader.next().ok()? {
            if let Some(section) = commit.sections.iter().find(|section| *section.topic == **name) {
                let batch = as_defined(&self.plan, topic, &section.batch().ok()?).ok()?;
                let times = crate::engine::event_times(&self.plan, topic, &batch);
                return times.iter().copied().max().map(|newest| newest.max(section.before));
            }
        }
        None
    }
}

fn stored_store(plan: &Plan, index: usize) -> StoredStore {
    let keyed = &plan.stores[index];
    let source = plan.topics[keyed.source].name.clone();
    StoredStore { source, key: keyed.key.clone(), plan: keyed.plan.clone() }
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
