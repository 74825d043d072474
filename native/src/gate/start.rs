//! Start: the log is recovered, the state restored, the ids found again, and what was left open is closed.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use arrow_array::UInt32Array;
use arrow_select::take::take_record_batch;

use super::Clock;
use super::admit::id_hashes;
use super::core::{Core, PolicyLog, Settings, decision_writer, section, when_there_is_room};
use super::dead::Letters;
use super::stats::{DeadLetters, Stats};
use super::weight::Weights;
use crate::decide::{Case, Decider, no_score};
use crate::decode::{Decoder, Limits};
use crate::disk::Disk;
use crate::engine::{LATE, null_columns};
use crate::error::{Error, Result};
use crate::follower::{Follower, Incomplete, Progress, STATE_NOTE, as_defined, fingerprint};
use crate::ids::{self, Ids};
use crate::log::{self, Address, Catalog, Commit, Log, Reader, Recovery, StoredSection};
use crate::memory;
use crate::plan::{Plan, PolicyPlan, TopicPlan, read_roles, roles_key};
use crate::schema::{Field, Schema};
use crate::witness;

/// What start found and did.
pub struct Started {
    pub recovery: Recovery,
    /// Commits that were read from the log beyond the snapshot.
    pub commits: u64,
    pub events: u64,
    /// Events that got the fallback because their decision was not in the log.
    pub undecided: usize,
    pub incomplete: Vec<Incomplete>,
    /// Damaged snapshots and id files that were passed over.
    pub passed_over: Vec<String>,
}

impl Core {
    pub fn open(
        plan: Plan,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        settings: Settings,
        log_settings: log::Settings,
        ids_settings: ids::Settings,
        progress: Progress,
    ) -> Result<(Core, Started)> {
        let (plan, segment_bytes) = (Arc::new(plan), log_settings.segment_bytes);
        let witness = witness::newest(disk.as_ref())?;
        let (mut log, recovery) = Log::open_beside(disk.clone(), log_settings, clock.now_us(), &witness)?;
        let (topics, policies) = define_all(&plan, &mut log, clock.now_us())?;
        crate::snapshot::remove_drafts(disk.as_ref())?;
        let mut ids = Ids::open(disk.clone(), ids_settings)?;
        let mut follower = Follower::open(plan.clone(), disk.clone(), settings.threads, progress)?;
        let first = follower.sequence;
        let mut inserter = Inserter::new(&plan, log.catalog(), ids.covered());
        inserter.catch_up(&disk, follower.sequence, &mut ids)?;
        let last = log.last_sequence();
        while follower.advance(1024, |commit| inserter.insert(&mut ids, commit))? > 0 {
            progress("reading the log", follower.sequence, last);
        }
        // An event that retention has removed is nobody's to decide any more; one whose policy has left waits for it.
        let known = |origin: u16| policies.iter().any(|policy| policy.origin == origin);
        follower.undecided.retain(|key, address| known(key.0) && log.keeps(Address(*address)));
        let mut passed_over = std::mem::take(&mut follower.passed_over);
        // None of the snapshots that are there may be one that a start can use.
        let outdated = follower.rebuilt || !passed_over.is_empty();
        passed_over.extend(ids.damage().iter().map(ToString::to_string));
        let started = Started {
            commits: follower.sequence.saturating_sub(first),
            events: follower.events,
            undecided: follower.undecided.len(),
            incomplete: follower.incomplete(),
            passed_over,
            recovery,
        };
        let weights = Weights::new(&plan, segment_bytes, settings.commit_bytes);
        let reserve_bytes = reserve_bytes(&weights, &log)?;
        let mut stats = Stats::new();
        stats.flush_us = started.recovery.flush_us;
        stats.state_bytes_max = settings.state_bytes_max as u64;
        stats.decisions = decision_counters(&plan);
        stats.dead_letters =
            plan.topics.iter().map(|topic| (topic.name.clone(), DeadLetters::default())).collect();
        let mut core = Core {
            decoders: Arc::new(decoders(&plan, weights.limits)),
            deciders: (0..plan.policies.len())
                .map(|policy| Decider::new(&plan, policy))
                .collect::<Result<_>>()?,
            writers: writers(&plan, &policies),
            bulk: BTreeMap::new(),
            cutting: VecDeque::new(),
            bulk_queue: VecDeque::new(),
            bulk_turn: false,
            told_lines: HashMap::new(),
            pending: BTreeMap::new(),
            scored: VecDeque::new(),
            weights,
            reserve_bytes,
            holding: false,
            untold: BTreeMap::new(),
            letters: Letters::default(),
            next_number: 1,
            last: Vec::new(),
            worded: Default::default(),
            engine: follower.engine,
            plan,
            clock,
            disk,
            segment: 0,
            trim_from: if outdated { last } else { 0 },
            tended_us: i64::MIN,
            log,
            ids,
            topics,
            policies,
            stats,
        };
        core.close_open_decisions(&follower.undecided)?;
        core.look_for_room()?;
        core.measure_state();
        memory::give_back();
        Ok((core, started))
    }

    /// An event whose decision is not in the log gets the fallback, cause `restart`; a commit of them for each of theirs.
    fn close_open_decisions(&mut self, undecided: &crate::follower::Undecided) -> Result<()> {
        let mut open: BTreeMap<u64, BTreeMap<usize, Vec<i64>>> = BTreeMap::new();
        for (&(origin, offset), &address) in undecided {
            let policy = self.policies.iter().position(|policy| policy.origin == origin);
            let policy = policy.expect("only events of the pipeline's policies are closed");
            open.entry(address).or_default().entry(policy).or_default().push(offset);
        }
        let now_us = self.clock.now_us();
        let mut closed = Vec::with_capacity(open.len());
        for (address, policies) in open {
            let commit = self.log.read(Address(address))?;
            let (mut sections, mut hashes) = (Vec::new(), Vec::new());
            for (policy, offsets) in policies {
                self.close_open_decision(&commit, policy, &offsets, &mut sections, &mut hashes)?;
            }
            closed.push((self.log.append(&sections, now_us)?, hashes));
        }
        self.log.sync()?;
        for (committed, hashes) in closed {
            self.ids.insert_batch(&hashes, committed.address.0, committed.sequence, now_us);
        }
        Ok(())
    }

    fn close_open_decision(
        &self,
        commit: &Commit,
        policy: usize,
        offsets: &[i64],
        sections: &mut Vec<log::Section>,
        hashes: &mut Vec<u64>,
    ) -> Result<()> {
        let topic = self.plan.policy_topic(policy);
        let about = &self.plan.topics[topic];
        let origin = self.policies[policy].origin;
        let entered = |section: &&StoredSection| *section.topic == *about.name && section.origin == origin;
        for stored in commit.sections.iter().filter(entered) {
            let places = 0..stored.rows as i64;
            let row = |offset: &i64| offset - stored.base_offset as i64;
            let offsets: Vec<i64> =
                offsets.iter().copied().filter(|offset| places.contains(&row(offset))).collect();
            if offsets.is_empty() {
                continue;
            }
            let rows: Vec<u32> = offsets.iter().map(|offset| row(offset) as u32).collect();
            let late = |row: &u32| stored.marks.as_deref().map_or(0, |marks| marks[*row as usize] & LATE);
            let marks: Vec<u8> = rows.iter().map(late).collect();
            let events = as_defined(&self.plan, topic, &stored.batch()?)?;
            let events = take_record_batch(&events, &UInt32Array::from(rows))
                .map_err(|error| Error::invalid(format!("could not take events: {error}")))?;
            let columns = &self.plan.features[self.plan.policies[policy].features].columns;
            let case = Case {
                events: &events,
                features: &null_columns(columns, offsets.len()),
                score: &no_score(offsets.len()),
                marks: &marks,
                offsets: &offsets,
            };
            let verdicts = self.deciders[policy].fall_back(offsets.len(), "restart")?;
            let table = self.deciders[policy].table(&case, &verdicts)?;
            sections.push(section(self.policies[policy].decisions, table));
            hashes.extend(id_hashes(&about.name, events.column(about.id)));
        }
        Ok(())
    }
}

/// What a segment has beyond a cycle's largest commit, for what is in flight: up to a quarter of it. The catalog may
/// still grow, by consumers and by versions of policies.
fn reserve_bytes(weights: &Weights, log: &Log) -> Result<usize> {
    let (most, needed) = (log.append_bytes_max() as usize, weights.cycle_bytes_max() + weights.catalog_bytes);
    let left = most.checked_sub(needed).ok_or_else(|| {
        let message =
            format!("one commit may take {needed} bytes, and a segment of the log has room for {most}");
        Error::invalid_with(message, "set larger segments (segment_bytes), or a smaller commit_bytes")
    })?;
    Ok(left.min(most / 4))
}

/// Puts the ids of commits that the index's files do not have back into its memory.
struct Inserter<'a> {
    plan: &'a Plan,
    /// Each topic's field of ids, also of those that have left the pipeline: they may come back.
    topics: BTreeMap<String, String>,
    covered: u64,
}

impl Inserter<'_> {
    fn new<'a>(plan: &'a Plan, catalog: &Catalog, covered: u64) -> Inserter<'a> {
        let noted = catalog.notes().iter().filter_map(|(key, note)| read_roles(key, note));
        let topics = noted.map(|(topic, id, _)| (topic.to_string(), id.to_string())).collect();
        Inserter { plan, topics, covered }
    }

    /// The commits between the index's files and the snapshot.
    fn catch_up(&mut self, disk: &Arc<dyn Disk>, until: u64, ids: &mut Ids) -> Result<()> {
        if self.covered >= until {
            return Ok(());
        }
        let from = log::seek_sequence(disk.clone(), self.covered + 1)?;
        let mut reader = Reader::open(disk.clone(), from)?;
        while let Some(commit) = reader.next()? {
            if commit.sequence > until {
                break;
            }
            self.insert(ids, &commit)?;
        }
        Ok(())
    }

    fn insert(&self, ids: &mut Ids, commit: &Commit) -> Result<()> {
        if commit.sequence <= self.covered || forgets_ids() {
            return Ok(());
        }
        let mut hashes = Vec::new();
        for section in &commit.sections {
            let columns = self.id_columns(section);
            if columns.is_empty() {
                continue;
            }
            let batch = section.batch()?;
            for (topic, id) in columns {
                // By its name: where it stands may have changed since.
                let column = batch.column_by_name(id);
                let lacking = || Error::invalid(format!("{} has no {id:?} in the log", section.topic));
                hashes.extend(id_hashes(topic, column.ok_or_else(lacking)?));
            }
        }
        // To an event and its decision in one commit one entry leads, as it does where they were decided.
        hashes.sort_unstable();
        hashes.dedup();
        ids.insert_batch(&hashes, commit.address.0, commit.sequence, commit.time_us);
        when_there_is_room(ids.flushable(commit.sequence))
    }

    /// Of which topic a section may hold ids, and in which column: events, decisions and timeouts are all found by the
    /// event's id.
    fn id_columns(&self, section: &StoredSection) -> Vec<(&str, &str)> {
        let name = &*section.topic;
        if let Some((topic, id)) = self.topics.get_key_value(name) {
            return vec![(topic, id)];
        }
        let rest = name.strip_suffix(".decisions").or_else(|| name.strip_suffix(".timeouts"));
        let Some(policy) = rest else { return Vec::new() };
        match self.plan.policies.iter().position(|known| known.name == policy) {
            Some(policy) => vec![(&self.plan.topics[self.plan.policy_topic(policy)].name, "id")],
            // A policy that has left may come back, and who asks it again is told the same. Of which topic it was nobody
            // knows now; an id that leads to a commit of another topic's does no harm.
            None => self.topics.keys().map(|topic| (topic.as_str(), "id")).collect(),
        }
    }
}

/// Only the simulation's negative control does.
fn forgets_ids() -> bool {
    #[cfg(test)]
    return crate::simulate::controls::is_off(crate::simulate::controls::Safeguard::Ids);
    #[cfg(not(test))]
    false
}

fn decoders(plan: &Plan, limits: Limits) -> Vec<Decoder> {
    plan.topics.iter().map(|topic| Decoder::new(&topic.schema(), topic.id, limits)).collect()
}

fn writers(plan: &Plan, policies: &[PolicyLog]) -> HashMap<u32, crate::answer::DecisionWriter> {
    policies
        .iter()
        .enumerate()
        .map(|(policy, kept)| (kept.decisions, decision_writer(&plan.decisions_schema(policy))))
        .collect()
}

fn decision_counters(plan: &Plan) -> Vec<(String, String, u64)> {
    let pairs = plan
        .policies
        .iter()
        .flat_map(|policy| policy.outcomes.iter().map(|outcome| (policy.name.clone(), outcome.clone(), 0)));
    pairs.collect()
}

// Definitions.

/// Schema ids of topics and policies. What the log did not have yet takes effect with a commit of its own.
fn define_all(plan: &Plan, log: &mut Log, now_us: i64) -> Result<(Vec<u32>, Vec<PolicyLog>)> {
    for topic in &plan.topics {
        check_topic(topic, log.catalog())?;
    }
    for index in 0..plan.policies.len() {
        check_policy(plan, index, log.catalog())?;
    }
    let mut topics = Vec::new();
    for topic in &plan.topics {
        topics.push(log.define(&topic.name, &topic.schema())?);
        note(log, &roles_key(&topic.name), &topic.roles());
    }
    let mut policies = Vec::new();
    for (index, policy) in plan.policies.iter().enumerate() {
        let decisions_topic = format!("{}.decisions", policy.name);
        let timeouts_topic = format!("{}.timeouts", policy.name);
        policies.push(PolicyLog {
            decisions: log.define(&decisions_topic, &plan.decisions_schema(index))?,
            timeouts: log.define(&timeouts_topic, &plan.timeouts_schema(index))?,
            decisions_topic,
            timeouts_topic,
            origin: 0,
        });
        note(log, &format!("policy/{}/{}", policy.name, policy.version), &policy.definition);
        note(log, &decides_key(policy), &plan.topics[plan.policy_topic(index)].name);
    }
    note(log, STATE_NOTE, &fingerprint(plan));
    if log.has_changes() {
        log.append(&[], now_us)?;
        log.sync()?;
    }
    for policy in &mut policies {
        policy.origin = log.catalog().origin(&policy.decisions_topic);
    }
    Ok((topics, policies))
}

fn note(log: &mut Log, key: &str, text: &str) {
    if log.catalog().notes().get(key).map(String::as_str) != Some(text) {
        log.note(key, Some(text));
    }
}

fn decides_key(policy: &PolicyPlan) -> String {
    format!("decides/{}", policy.name)
}

/// A policy stays with its topic: its decisions name their events by offset alone.
fn check_policy(plan: &Plan, index: usize, catalog: &Catalog) -> Result<()> {
    let (policy, topic) = (&plan.policies[index], &plan.topics[plan.policy_topic(index)].name);
    match catalog.notes().get(&decides_key(policy)) {
        Some(noted) if noted != topic => Err(Error::invalid_with(
            format!("policy \"{}\" decided on topic \"{noted}\" before, and now on \"{topic}\"", policy.name),
            "give the policy another name, or use a new data directory",
        )),
        _ => Ok(()),
    }
}

/// An added optional field is welcome; anything that would misread the stored events is refused with the difference.
fn check_topic(topic: &TopicPlan, catalog: &Catalog) -> Result<()> {
    let Some(stored) = catalog.newest_schema(&topic.name) else { return Ok(()) };
    let mut differences = differences(&stored.schema, &topic.schema());
    if let Some(stored) = catalog.notes().get(&roles_key(&topic.name))
        && *stored != topic.roles()
    {
        differences.push(format!("the log has {stored}, the pipeline {}", topic.roles()));
    }
    if differences.is_empty() {
        return Ok(());
    }
    Err(Error::invalid_with(
        format!("topic \"{}\" would be misread: {}", topic.name, differences.join("; ")),
        "optional fields may be added; for any other change use a new topic or a new data directory",
    ))
}

fn differences(stored: &Schema, defined: &Schema) -> Vec<String> {
    let mut differences = Vec::new();
    for old in &stored.fields {
        match defined.fields.iter().find(|field| field.name == old.name) {
            None => differences.push(format!("the log has a field {}, the pipeline none", words(old))),
            Some(new) if new.kind != old.kind || (old.optional && !new.optional) => {
                differences.push(format!("the log has {}, the pipeline {}", words(old), words(new)));
            }
            Some(_) => {}
        }
    }
    for new in &defined.fields {
        if !new.optional && stored.index(&new.name).is_none() {
            differences.push(format!("the pipeline has a new field {} that stored events lack", words(new)));
        }
    }
    differences
}

fn words(field: &Field) -> String {
    let optional = if field.optional { ", optional" } else { "" };
    format!("\"{}\" ({}{optional})", field.name, field.kind)
}
