//! What must be so after a start: the log, the state, the positions, a decision for each event.

use std::sync::Arc;

use super::Broken;
use super::history::{Id, ensure};
use super::run::Run;
use crate::disk::Disk;
use crate::engine::Engine;
use crate::follower::Follower;
use crate::gate::Clock;
use crate::log::{self, Reader};
use crate::plan::Plan;
use crate::snapshot;

impl Run {
    pub(super) fn read_log(&mut self) -> Result<(), Broken> {
        let (shared, first) = (self.spared(), self.history.first_sequence);
        let mut read = || -> crate::error::Result<Result<(), Broken>> {
            if self.reader.is_none() {
                self.reader = Some(Reader::open(shared.clone(), None)?);
            }
            let reader = self.reader.as_mut().expect("it was just opened");
            while let Some(commit) = reader.next()? {
                if let Err(broken) = self.history.take(&commit, reader.catalog()) {
                    return Ok(Err(broken));
                }
            }
            self.history.first_sequence = log::first_sequence(shared.as_ref())?;
            Ok(Ok(()))
        };
        let read = read().map_err(|error| format!("the log cannot be read: {error}"))?;
        read?;
        if first > 0 && self.history.first_sequence > first {
            self.summary.count("(retention removed a part of the log)");
            self.check_removal()?;
        }
        self.removers = vec![self.settings.log.clone()];
        self.history.ended.clear();
        Ok(())
    }

    /// The log's beginning is gone: by settings that were in force, and two snapshots do without it.
    fn check_removal(&self) -> Result<(), Broken> {
        let first = self.history.first_sequence;
        // A file is as old as the next one's beginning, which its first commit made.
        let (_, ended_us) = self.history.times.range(first..).next().ok_or("nothing is left of the log")?;
        let now_us = self.history.forgotten_us.max(self.clock.now_us());
        let old = |retention_us: i64| *ended_us < now_us - retention_us;
        let files = self.spared().list("log").map_err(|error| error.to_string())?;
        let kept: u64 =
            files.iter().filter(|(name, _)| name.ends_with(".segment")).map(|(_, bytes)| bytes).sum();
        // With the last one that is gone, and all are of one size, it was larger.
        let large = |retention_bytes: u64| kept + self.settings.log.segment_bytes > retention_bytes;
        let by =
            |log: &log::Settings| log.retention_bytes.is_some_and(large) || log.retention_us.is_some_and(old);
        ensure(self.removers.iter().any(by), || {
            format!("commits before {first} are gone, and no retention asks for it")
        })?;
        let snapshots = snapshot::list(self.spared().as_ref()).map_err(|error| error.to_string())?;
        let later = snapshots.iter().filter(|sequence| **sequence >= first).count();
        ensure(later >= snapshot::KEPT, || {
            format!("commits before {first} are gone, and there are snapshots {snapshots:?}")
        })
    }

    /// Read again all that is kept: what was there is there.
    pub(super) fn check_whole_log(&mut self) -> Result<(), Broken> {
        self.reader = None;
        self.read_log()?;
        let kept = self.history.commits.range(self.history.first_sequence..).count();
        let mut reader = Reader::open(self.spared(), None).map_err(|error| error.to_string())?;
        let mut found = 0;
        while reader.next().map_err(|error| error.to_string())?.is_some() {
            found += 1;
        }
        ensure(found == kept, || format!("the log has {found} commits of {kept}"))?;
        self.check_untaken()
    }

    /// What was sent once, and there was no space for it, is nowhere.
    fn check_untaken(&self) -> Result<(), Broken> {
        let once = |id: &Id| self.history.sent[id].len() == 1;
        let found =
            self.door.untaken.iter().find(|(.., id, _)| once(id) && self.history.ids.contains_key(id));
        ensure(found.is_none(), || format!("the log has {found:?}, for which there was no space"))
    }

    /// But for those that retention has removed undecided.
    pub(super) fn check_all_decided(&mut self) -> Result<(), Broken> {
        let open = self.history.open(&self.pipeline.policies);
        ensure(open.is_empty(), || format!("undecided: {open:?}"))
    }

    pub(super) fn check_positions(&mut self) -> Result<(), Broken> {
        let catalog = log::newest_catalog(self.spared()).map_err(|error| error.to_string())?;
        for ((consumer, topic), (acknowledged, sent)) in &self.positions {
            let found = catalog.position(consumer, topic);
            let fits = found.map_or(!acknowledged, |found| sent.contains(&found));
            ensure(fits, || format!("{consumer} {topic}: {found:?}"))?;
        }
        Ok(())
    }

    /// The state as a start would have it, as the gate has it, and as it comes from the whole log, are the same bytes.
    pub(super) fn check_state(&mut self) -> Result<(), Broken> {
        let plan = Arc::new(self.pipeline.plan());
        let restored = state(&plan, self.spared()).map_err(|error| format!("restoring: {error}"))?;
        let whole: Arc<dyn Disk> = Arc::new(self.disk.whole_log());
        let computed = state(&plan, whole).map_err(|error| format!("recomputing: {error}"))?;
        let live = match &mut self.core {
            Some(core) => stores(core.engine_mut()).map_err(|error| error.to_string())?,
            None => restored.clone(),
        };
        for (index, (restored, computed)) in restored.iter().zip(&computed).enumerate() {
            // A note of what was missing stays as long as any window might have needed it.
            if restored.windows(10).any(|text| text == b"\"since\":{\"") {
                self.summary.count("(state not compared: retention had removed a part)");
                continue;
            }
            self.summary.states += 1;
            ensure(live[index] == *computed, || {
                format!(
                    "the gate has store {index} as {} bytes, computed {}",
                    live[index].len(),
                    computed.len()
                )
            })?;
            ensure(restored == computed, || {
                format!("store {index} is restored as {} bytes, computed {}", restored.len(), computed.len())
            })?;
        }
        Ok(())
    }
}

/// Every store's bytes at the log's end.
fn state(plan: &Arc<Plan>, disk: Arc<dyn Disk>) -> crate::error::Result<Vec<Vec<u8>>> {
    let mut follower = Follower::open(plan.clone(), disk, 1, &mut |_, _, _| {})?;
    while follower.advance(1024, |_| Ok(()))? > 0 {}
    stores(&mut follower.engine)
}

fn stores(engine: &mut Engine) -> crate::error::Result<Vec<Vec<u8>>> {
    engine.settle();
    let save = |index| {
        let mut bytes = Vec::new();
        engine.save_store(index, &mut bytes).map(|()| bytes)
    };
    (0..engine.plan.stores.len()).map(save).collect()
}
