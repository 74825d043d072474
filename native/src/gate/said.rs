//! What was said before: a retry is told the same, and who asks for a decision finds it.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};

use super::admit::{Id, SeenEvent, find_id, id_hash};
use super::core::{Core, Cycle, Waiter, decision_writer, fallback_body};
use super::words::Words;
use super::{Answer, Request, error_body};
use crate::answer::{self, DecisionWriter, Extra};
use crate::error::{Error, Result};
use crate::ids;
use crate::log::Address;
use crate::schema::Type;

impl Core {
    /// Answer a retry as the first attempt was answered, or let it wait with the first.
    pub(super) fn repeat(
        &mut self,
        cycle: &mut Cycle,
        policy: usize,
        event: &SeenEvent,
        waiter: Waiter,
    ) -> Result<()> {
        self.stats.repeats += 1;
        match self.first_answer(cycle, policy, event) {
            Ok(None) => {}
            Ok(Some(body)) => {
                cycle.finish(waiter, Words::Made(body), None);
                return Ok(());
            }
            Err(error) => {
                let (status, body) = unreadable(error)?;
                self.refuse(cycle, &waiter, status, body);
                return Ok(());
            }
        }
        for pending in
            self.pending.values_mut().filter(|pending| pending.policy == policy && !pending.dry_run)
        {
            let Some(row) = pending.batch.offsets.iter().position(|&offset| offset == event.offset) else {
                continue;
            };
            if pending.told[row] {
                let body = fallback_body(&self.plan, policy, &pending.batch.events, row);
                cycle.finish(waiter, Words::Made(body), None);
            } else {
                pending.waiters.push((row, waiter));
            }
            return Ok(());
        }
        let message = "the event is in the log, but no decision about it was found";
        self.refuse(cycle, &waiter, 500, error_body("no_decision", message, None));
        Ok(())
    }

    pub(super) fn first_answer(
        &mut self,
        cycle: &mut Cycle,
        policy: usize,
        event: &SeenEvent,
    ) -> Result<Option<Vec<u8>>> {
        if let Some(body) = self.told_now(cycle, policy, event.offset) {
            return Ok(Some(body));
        }
        if let Some(body) = self.told_body(cycle, policy, event)? {
            return Ok(Some(body));
        }
        self.decision_body(cycle, policy, event)
    }

    /// What this cycle knows that the first caller was told, if that was the fallback.
    pub(super) fn told_now(&self, cycle: &Cycle, policy: usize, offset: i64) -> Option<Vec<u8>> {
        let told = cycle.tells.iter().find(|tell| tell.policy == policy && tell.offset == offset)?;
        Some(fallback_body(&self.plan, policy, &told.events, told.row))
    }

    pub(super) fn told_body(
        &self,
        cycle: &mut Cycle,
        policy: usize,
        event: &SeenEvent,
    ) -> Result<Option<Vec<u8>>> {
        let told = self.untold.get(&(policy, event.offset));
        if let Some(tell) = told.or_else(|| self.told_in_bulk(policy, event.offset)) {
            return Ok(Some(fallback_body(&self.plan, policy, &tell.events, tell.row)));
        }
        let topic = &self.policies[policy].timeouts_topic;
        let Some((_, table, row)) = self.find_row(cycle, topic, 1, event)? else { return Ok(None) };
        let text = |column: usize| table.column(column).as_string::<i32>().value(row);
        let mut id = Vec::new();
        let kind = self.plan.timeouts_schema(policy).fields[0].kind;
        answer::write_value(&mut id, table.column(0), kind, row);
        let mut body = Vec::new();
        answer::write_fallback(&mut body, &id, text(2), text(3), text(4));
        Ok(Some(body))
    }

    pub(super) fn decision_body(
        &mut self,
        cycle: &mut Cycle,
        policy: usize,
        event: &SeenEvent,
    ) -> Result<Option<Vec<u8>>> {
        let topic = self.policies[policy].decisions_topic.clone();
        let Some((schema, table, row)) = self.find_row(cycle, &topic, 1, event)? else { return Ok(None) };
        let mut body = Vec::new();
        self.writer(schema)?.rows(&table).write(&mut body, row, Extra::default());
        Ok(Some(body))
    }

    /// The row about an event's offset in one of the commits that its id leads to.
    pub(super) fn find_row(
        &self,
        cycle: &mut Cycle,
        topic: &str,
        offset_column: usize,
        event: &SeenEvent,
    ) -> Result<Option<(u32, RecordBatch, usize)>> {
        for &address in &event.addresses {
            let commit = self.commit(&mut cycle.commits, address)?;
            for (place, section) in commit.sections_of(topic) {
                let table = self.table(&mut cycle.commits, address, place, None)?;
                if let Some(row) = table.find_offset(offset_column, event.offset) {
                    return Ok(Some((section.schema, table.batch.clone(), row)));
                }
            }
        }
        Ok(None)
    }

    /// The writer of a schema of decisions, which may be an earlier version of the policy's.
    pub(super) fn writer(&mut self, schema: u32) -> Result<&DecisionWriter> {
        if !self.writers.contains_key(&schema) {
            let known =
                self.log.catalog().schema(schema).ok_or_else(|| Error::invalid("an unknown schema"))?;
            let writer = decision_writer(&known.schema);
            self.writers.insert(schema, writer);
        }
        Ok(&self.writers[&schema])
    }

    pub(super) fn look_up(&mut self, cycle: &mut Cycle, request: Request) -> Result<()> {
        let policy = request.target;
        let (status, body) = match self.find_decision(cycle, policy, &request.body) {
            Ok(Some(found)) => found,
            Ok(None) => (404, error_body("not_found", "no decision of this policy has this id", None)),
            Err(error) => unreadable(error)?,
        };
        cycle.answers.push(Answer::plain(request.handle, status, body));
        Ok(())
    }

    pub(super) fn find_decision(
        &mut self,
        cycle: &mut Cycle,
        policy: usize,
        text: &[u8],
    ) -> Result<Option<(u16, Vec<u8>)>> {
        let topic = self.plan.policy_topic(policy);
        let Some(id) = parse_id(self.plan.topics[topic].fields[self.plan.topics[topic].id].kind, text) else {
            return Ok(None);
        };
        let mut addresses = Vec::new();
        self.ids.find(id_hash(&self.plan.topics[topic].name, &id.value()), &mut addresses)?;
        addresses.retain(|&address| self.log.keeps(Address(address)));
        let Some(event) = self.find_event(cycle, topic, &id.column(), addresses)? else { return Ok(None) };
        if event.origin != self.policies[policy].origin {
            return Ok(None);
        }
        let told = self.told_body(cycle, policy, &event)?;
        let decision = self.decision_body(cycle, policy, &event)?;
        let (mut body, late) = match (told, decision) {
            (Some(told), decision) => (told, decision),
            (None, Some(decision)) => (decision, None),
            (None, None) => return Ok(Some((404, error_body("pending", "it is not decided yet", None)))),
        };
        body.extend_from_slice(b",\"late_decision\":");
        match late {
            None => body.extend_from_slice(b"null"),
            Some(mut decision) => {
                answer::close(&mut decision);
                body.extend_from_slice(&decision);
            }
        }
        answer::close(&mut body);
        Ok(Some((200, body)))
    }

    pub(super) fn find_event(
        &self,
        cycle: &mut Cycle,
        topic: usize,
        id: &ArrayRef,
        addresses: Vec<u64>,
    ) -> Result<Option<SeenEvent>> {
        let about = &self.plan.topics[topic];
        for &address in &addresses {
            let commit = self.commit(&mut cycle.commits, address)?;
            for (place, section) in commit.sections_of(&about.name) {
                let stored = self.table(&mut cycle.commits, address, place, Some(topic))?;
                if let Some(row) = find_id(stored.batch.column(about.id), id, 0) {
                    let offset = section.base_offset as i64 + row as i64;
                    return Ok(Some(SeenEvent { origin: section.origin, offset, addresses }));
                }
            }
        }
        Ok(None)
    }
}

/// The answer to one caller whose event or decision cannot be read any more: where, what is affected, and what to do.
/// Any other error is everybody's.
pub(super) fn unreadable(error: Error) -> Result<(u16, Vec<u8>)> {
    let advice = match error {
        Error::Damaged { ref file, .. } if file.starts_with(ids::FOLDER) => {
            "the next start makes the files of ids again from the log"
        }
        Error::Damaged { .. } => "penstock log verify shows what is damaged",
        Error::Io { .. } => "see to the disk, and ask again",
        other => return Err(other),
    };
    let message = format!("{error}; what was written there cannot be told, all else goes on: {advice}");
    Ok((500, error_body("log_damaged", &message, None)))
}

/// An id that came as text, in a URL.
enum ParsedId {
    Int(i64),
    Text(String),
}

impl ParsedId {
    fn value(&self) -> Id<'_> {
        match self {
            ParsedId::Int(id) => Id::Int(*id),
            ParsedId::Text(id) => Id::Text(id),
        }
    }

    fn column(&self) -> ArrayRef {
        match self {
            ParsedId::Int(id) => Arc::new(Int64Array::from(vec![*id])),
            ParsedId::Text(id) => Arc::new(StringArray::from(vec![id.as_str()])),
        }
    }
}

fn parse_id(kind: Type, text: &[u8]) -> Option<ParsedId> {
    let text = std::str::from_utf8(text).ok()?;
    match kind {
        Type::Int64 => text.parse().ok().map(ParsedId::Int),
        _ => Some(ParsedId::Text(text.into())),
    }
}
