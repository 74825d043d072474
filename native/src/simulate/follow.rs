//! The follower: it reads the log and writes snapshots, beside the gate.

use std::sync::Arc;

use super::Broken;
use super::disk::Fault;
use super::history::ensure;
use super::run::Run;
use crate::disk::SMALL_PIECE;
use crate::follower::Follower;

impl Run {
    pub(super) fn follow(&mut self) -> Result<(), Broken> {
        let armed = self.chance.percent(15);
        if armed {
            let fault = *self.chance.pick(&[
                Fault::Stop,
                Fault::StopAfter,
                Fault::FailedSync,
                Fault::ShortWrite,
                Fault::FailedRead,
            ]);
            self.disk.arm(fault, 1 + self.chance.below(8) as u64);
        }
        let followed = self.follow_on();
        let fault = self.disk.disarm();
        // No fault excuses a wrong state.
        let mismatches = self.follower.as_ref().map_or(0, |follower| follower.mismatches);
        ensure(mismatches == 0, || "the follower came to other features".into())?;
        match followed {
            Ok(()) => Ok(()),
            Err(error) => {
                self.follower = None;
                let overtaken = error.contains("not kept any more") || error.contains("not there any more");
                ensure(fault.is_some() || self.limited || overtaken, || {
                    format!("the follower has stopped: {error}")
                })?;
                self.note("follower stopped", format!("{fault:?}: {error}"));
                Ok(())
            }
        }
    }

    pub(super) fn follow_on(&mut self) -> Result<(), Broken> {
        let words = |error: crate::error::Error| error.to_string();
        if self.follower.is_none() {
            let plan = Arc::new(self.pipeline.plan());
            let follower = Follower::open(plan, self.shared(), 1, &mut |_, _, _| {}).map_err(words)?;
            self.follower = Some(follower);
        }
        let commits = 1 + self.chance.below(60);
        let snapshot = self.chance.percent(50);
        let follower = self.follower.as_mut().expect("it was just opened");
        follower.advance(commits, |_| Ok(())).map_err(words)?;
        if follower.mismatches > 0 {
            return Ok(());
        }
        // Before it has read the commit of a change, what it has is of neither pipeline.
        if snapshot && follower.sequence > 0 && follower.is_current().map_err(words)? {
            let sequence = follower.write_snapshot(&mut || Ok(SMALL_PIECE)).map_err(words)?;
            self.summary.snapshots += 1;
            self.trace.push(format!("snapshot of commit {sequence}"));
        }
        Ok(())
    }
}
