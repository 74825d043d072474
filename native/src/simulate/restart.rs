//! How the gate ends, and comes back.

use std::sync::Arc;

use super::Broken;
use super::disk::{Fault, Loss};
use super::history::ensure;
use super::pipeline::Pipeline;
use super::run::Run;
use super::settings::Settings;
use crate::disk::Disk;
use crate::follower::Incomplete;
use crate::gate::{Core, Started};

impl Run {
    /// The gate ends: killed, stopped, in the middle of a call, or with the machine.
    pub(super) fn crash(&mut self) -> Result<(), Broken> {
        let power = self.chance.percent(self.odds.power);
        match self.chance.below(10) {
            0 => {
                self.note("orderly end", String::new());
                if let Some(core) = self.core.take() {
                    core.close().map_err(|error| format!("the gate does not close: {error}"))?;
                }
                self.end_gate(power);
                self.settled = !power;
            }
            1..=3 => {
                self.note("killed", String::new());
                self.end_gate(power);
                self.settled = !power;
            }
            _ => {
                let fault = *self.chance.pick(&[
                    Fault::Stop,
                    Fault::StopAfter,
                    Fault::FailedWrite,
                    Fault::ShortWrite,
                    Fault::FailedSync,
                    Fault::FailedAllocate,
                    Fault::FailedRead,
                ]);
                self.disk.arm(fault, 1 + self.chance.below(6) as u64);
                self.trace.push(format!("armed {fault:?}"));
                self.unreadable = fault == Fault::FailedRead;
                self.unallocated = fault == Fault::FailedAllocate;
                for flight in self.door.flights.values_mut() {
                    flight.unreadable |= self.unreadable;
                    flight.full |= self.unallocated;
                }
                for _ in 0..3 {
                    self.send();
                    self.cycle()?;
                    self.deliver();
                }
                if let Some(fault) = self.disk.disarm() {
                    self.note(&format!("{fault:?}: the gate went on"), String::new());
                }
                self.end_gate(power);
            }
        }
        Ok(())
    }

    pub(super) fn end_gate(&mut self, power: bool) {
        self.core = None;
        (self.unreadable, self.unallocated) = (false, false);
        self.reader = None;
        self.models.clear();
        self.unanswered.extend(self.door.lose_gate());
        if power {
            let loss = *self.chance.pick(&[Loss::Everything, Loss::Writes, Loss::Sectors, Loss::Bytes]);
            self.disk = self.disk.lose_power(&mut self.chance, loss);
            self.follower = None;
            self.note(&format!("power loss: {loss:?}"), String::new());
        } else if self.chance.percent(50) {
            self.follower = None;
        }
    }

    pub(super) fn recover(&mut self) -> Result<(), Broken> {
        if std::mem::take(&mut self.settled) && self.chance.percent(self.odds.flip) {
            self.damage()?;
        }
        if self.chance.percent(self.odds.change) && self.summary.starts < 40 {
            let mut changed = (*self.pipeline).clone();
            let what = changed.change(&mut self.chance);
            self.note("pipeline changed", what.into());
            self.replace_pipeline(changed);
        }
        if self.chance.percent(self.odds.change) {
            let what = self.settings.change(&mut self.chance);
            self.removers.push(self.settings.log.clone());
            self.note("settings changed", what.into());
        }
        if self.chance.percent(self.odds.mistake) {
            self.mistake()?;
        }
        self.start()
    }

    pub(super) fn replace_pipeline(&mut self, changed: Pipeline) {
        self.history.forget(self.pipeline.retain_us());
        self.history.ended.push(std::mem::replace(&mut self.pipeline, Arc::new(changed)));
        self.settings.ids.retain_us = self.pipeline.retain_us();
        self.follower = None;
        self.history.define(&self.pipeline);
    }

    /// A pipeline that would misread the log is refused in words, and the one before goes on as ever.
    fn mistake(&mut self) -> Result<(), Broken> {
        let Some((mistaken, what, said)) = self.pipeline.mistake(&mut self.chance) else { return Ok(()) };
        match self.open_on(self.shared(), &mistaken) {
            Ok(_) => Err(format!("{what}: a start takes it")),
            Err(error) => {
                let error = error.to_string();
                ensure(error.contains(said) || self.limited, || format!("{what}: a start says {error}"))?;
                self.note("a start refuses", what.into());
                Ok(())
            }
        }
    }

    /// Until it succeeds: without a fault it must.
    pub(super) fn start(&mut self) -> Result<(), Broken> {
        for attempt in 0..20 {
            if self.chance.percent(20) && attempt < 10 && self.history.sequence > 0 {
                let fault = *self.chance.pick(&[
                    Fault::Stop,
                    Fault::StopAfter,
                    Fault::ShortWrite,
                    Fault::FailedSync,
                    Fault::FailedRead,
                ]);
                self.disk.arm(fault, 1 + self.chance.below(30) as u64);
            }
            self.summary.starts += 1;
            let opened = self.open();
            let fault = self.disk.disarm();
            match opened {
                Ok(incomplete) => {
                    // What could not be read it can do without.
                    let Some(fault) = fault.filter(|fault| *fault != Fault::FailedRead) else {
                        self.read_log()?;
                        // One that has lived on since before knows more than this gate: it would not be believed.
                        self.follower.take_if(|_| !incomplete.is_empty());
                        self.history.lacks(incomplete);
                        break;
                    };
                    self.core = None;
                    self.note(&format!("{fault:?} in a start"), String::new());
                }
                Err(error) if fault.is_some() => {
                    self.note(&format!("{:?} in a start", fault.expect("it struck")), error)
                }
                Err(error) if self.limited => {
                    self.note("no start on a full disk", error);
                    self.disk.limit(None);
                    self.limited = false;
                }
                Err(error) => return Err(format!("no start: {error}")),
            }
            if self.chance.percent(self.odds.power) {
                self.disk = self.disk.lose_power(&mut self.chance, Loss::Bytes);
                self.follower = None;
            }
        }
        self.check_whole_log()?;
        self.check_positions()?;
        self.check_all_decided().map_err(|broken| format!("after a start {broken}"))?;
        if self.chance.percent(30) { self.check_state() } else { Ok(()) }
    }

    /// A core on the pipeline and the disk as they are; what it says it could not build.
    fn open(&mut self) -> Result<Vec<Incomplete>, String> {
        let opened = self.open_on(self.shared(), &self.pipeline);
        let (core, started) = opened.map_err(|error| error.to_string())?;
        self.trace.push(format!(
            "started at commit {}: {} commits read, {} undecided, {} bytes cut, lacking {:?}",
            started.recovery.last_sequence,
            started.commits,
            started.undecided,
            started.recovery.cut_bytes,
            started.incomplete
        ));
        self.core = Some(core);
        Ok(started.incomplete)
    }

    pub(super) fn open_on(
        &self,
        disk: Arc<dyn Disk>,
        pipeline: &Pipeline,
    ) -> crate::error::Result<(Core, Started)> {
        let Settings { gate, log, ids } = self.settings.clone();
        Core::open(pipeline.plan(), disk, self.clock.clone(), gate, log, ids, &mut |_, _, _| {})
    }
}
