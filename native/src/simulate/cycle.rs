//! The gate at work: what it takes, what it answers, and why it may stop.

use super::Broken;
use super::disk::Fault;
use super::event;
use super::expression::Value;
use super::history::{Id, id_of};
use super::run::Run;
use crate::conform::read_ipc;
use crate::gate::{Answer, Core, Kind, MODEL, Request, Told};

impl Run {
    pub(super) fn cycle(&mut self) -> Result<(), Broken> {
        let fitting = self.core.as_ref().map_or(0, |core| core.fitting(self.door.inbox.iter()));
        let count = fitting.min(1 + self.chance.below(8));
        let (requests, told) = self.door.next_requests(count);
        self.expect_dry_runs(&requests);
        self.trace.push(format!("cycle of {} requests", requests.len()));
        if let Err(error) = self.step(requests, told) {
            return self.stopped(error);
        }
        let mut rounds = 0;
        while self.core.as_ref().is_some_and(Core::busy) && rounds < 1 + self.chance.below(4) {
            rounds += 1;
            if let Err(error) = self.step(Vec::new(), Told::default()) {
                return self.stopped(error);
            }
        }
        Ok(())
    }

    pub(super) fn step(&mut self, requests: Vec<Request>, told: Told) -> Result<(), Stop> {
        let Some(core) = self.core.as_mut() else { return Ok(()) };
        let answers = core.step(requests, told).and_then(|answers| core.tend().map(|()| answers));
        let answers = answers.map_err(|error| Stop::Gate(error.to_string()))?;
        // Some calls may fail, and the core goes on; where the process has ended nobody hears what it says.
        if self.disk.stopped() {
            return Err(Stop::Gate("the process has ended".into()));
        }
        self.read_log().map_err(Stop::Broken)?;
        for answer in answers {
            self.take(answer).map_err(Stop::Broken)?;
        }
        Ok(())
    }

    /// The gate has refused to go on: only a fault may make it.
    pub(super) fn stopped(&mut self, stop: Stop) -> Result<(), Broken> {
        match stop {
            Stop::Broken(broken) => Err(broken),
            Stop::Gate(error) => {
                let fault = self.disk.disarm();
                let fault = fault.filter(|fault| *fault != Fault::FailedRead);
                let fault = fault.ok_or_else(|| format!("the gate has stopped: {error}"))?;
                self.note(&format!("{fault:?}: the gate stopped"), error);
                let power = self.chance.percent(self.odds.power);
                self.end_gate(power);
                self.recover()
            }
        }
    }

    pub(super) fn take(&mut self, answer: Answer) -> Result<(), Broken> {
        if answer.flags & MODEL != 0 {
            self.models.push((answer.handle, self.ids_of(&answer)?));
            return Ok(());
        }
        let body = String::from_utf8_lossy(&answer.body);
        let body = body.split(",\"took_ms\"").next().unwrap_or_default();
        self.hash.update(format!("{} {} {body}", answer.handle, answer.status).as_bytes());
        self.door.check(&answer, &self.history, &self.pipeline)?;
        self.acknowledge_position(&answer);
        self.door.outbox.push(answer);
        Ok(())
    }

    fn acknowledge_position(&mut self, answer: &Answer) {
        let flight = self.door.flights.get(&answer.handle);
        let Some(flight) = flight.filter(|flight| flight.kind == Kind::Position && answer.status == 200)
        else {
            return;
        };
        let (topic, text) = &flight.lines[0].id;
        let (consumer, offset) = text.split_once(' ').expect("a consumer and an offset");
        let sent = self.positions.get_mut(&(consumer.to_string(), topic.clone())).expect("it was sent");
        let place = sent.1.iter().position(|sent| sent.to_string() == offset).expect("it was sent");
        *sent = (true, sent.1.split_off(place));
    }

    pub(super) fn ids_of(&self, answer: &Answer) -> Result<Vec<Id>, Broken> {
        let batches = read_ipc(&answer.body).map_err(|error| error.to_string())?;
        let batch = batches.first().ok_or("a model is asked about nothing")?;
        let topic = self.pipeline.topics.iter().find(|topic| batch.column_by_name(topic.id).is_some());
        let topic = topic.ok_or("a model is asked about no event")?;
        let (column, kind) = (batch.column_by_name(topic.id).expect("it was found"), topic.id_type());
        let ids = (0..batch.num_rows()).map(|row| event::cell(column, kind, row).expect("an id"));
        Ok(ids.map(|id| id_of(topic.name, &id)).collect())
    }

    pub(super) fn expect_dry_runs(&mut self, requests: &[Request]) {
        for request in requests.iter().filter(|request| request.kind == Kind::DryRun) {
            let flight = self.door.flights.get_mut(&request.handle).expect("it is under way");
            let policy = &self.pipeline.policies[flight.target];
            let topic = &self.pipeline.topics[policy.topic];
            if policy.model {
                continue;
            }
            let Some(row) = &flight.lines[0].row else { continue };
            let Value::Whole(time) = row[topic.time] else { continue };
            let next = self.history.next(topic.name, row.clone(), time as i64, topic.lateness_us);
            flight.expected = self.history.dry_run(&self.pipeline, flight.target, &next);
        }
    }

    pub(super) fn deliver(&mut self) {
        for answer in std::mem::take(&mut self.door.outbox) {
            if self.chance.percent(80) {
                self.door.flights.remove(&answer.handle);
            } else {
                self.door.outbox.push(answer);
            }
        }
    }
}

/// Why a step has no answers.
pub(super) enum Stop {
    Gate(String),
    Broken(Broken),
}
