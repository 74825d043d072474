//! What must be so after a start: the log, the state, the positions, a decision for each event.

use std::sync::Arc;

use super::Broken;
use super::history::{Id, ensure};
use super::run::Run;
use crate::disk::Disk;
use crate::follower::Follower;
use crate::log::{self, Reader};
use crate::plan::Plan;

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
        if first > 0 && self.history.first_sequence > first {
            self.summary.count("(retention removed a part of the log)");
        }
        read
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

    /// The state as a start would have it, and as it comes from the whole log, are the same bytes.
    pub(super) fn check_state(&mut self) -> Result<(), Broken> {
        let plan = Arc::new(self.pipeline.plan());
        let restored = state(&plan, self.spared()).map_err(|error| format!("restoring: {error}"))?;
        let whole: Arc<dyn Disk> = Arc::new(self.disk.whole_log());
        let computed = state(&plan, whole).map_err(|error| format!("recomputing: {error}"))?;
        for (index, (restored, computed)) in restored.iter().zip(&computed).enumerate() {
            // A note of what was missing stays as long as any window might have needed it.
            if restored.windows(10).any(|text| text == b"\"since\":{\"") {
                self.summary.count("(state not compared: retention had removed a part)");
                continue;
            }
            self.summary.states += 1;
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
    follower.engine.settle();
    let save = |index| {
        let mut bytes = Vec::new();
        follower.engine.save_store(index, &mut bytes).map(|()| bytes)
    };
    (0..plan.stores.len()).map(save).collect()
}
