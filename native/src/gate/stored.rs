//! The commits that one cycle looks at. Each is read and decoded once: a body that is sent again asks one commit for
//! every one of its events.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, RecordBatch};

use super::admit::{find_id, id_hashes, same_id};
use super::core::Core;
use crate::error::Result;
use crate::follower::as_defined;
use crate::log::{Address, Commit};
use crate::plan::TopicPlan;

#[derive(Default)]
pub(super) struct Commits(HashMap<u64, Looked>);

struct Looked {
    commit: Arc<Commit>,
    /// Of each section, once it was wanted.
    tables: Vec<Option<Rc<Table>>>,
}

/// The rows of one section.
pub(super) struct Table {
    pub batch: RecordBatch,
    /// The first row of each id's hash.
    rows: OnceCell<HashMap<u64, usize>>,
    /// Whether the events' offsets rise, as they do but for logs that were written otherwise.
    rising: OnceCell<bool>,
}

impl Core {
    pub(super) fn commit(&self, commits: &mut Commits, address: u64) -> Result<Arc<Commit>> {
        if let Some(looked) = commits.0.get(&address) {
            return Ok(looked.commit.clone());
        }
        let commit = Arc::new(self.log.read(Address(address))?);
        let tables = vec![None; commit.sections.len()];
        commits.0.insert(address, Looked { commit: commit.clone(), tables });
        Ok(commit)
    }

    /// A section of a commit that was looked at; of a topic's events as the topic is defined now.
    pub(super) fn table(
        &self,
        commits: &mut Commits,
        address: u64,
        section: usize,
        topic: Option<usize>,
    ) -> Result<Rc<Table>> {
        let looked = commits.0.get_mut(&address).expect("the commit was looked at");
        if let Some(table) = &looked.tables[section] {
            return Ok(table.clone());
        }
        let stored = looked.commit.sections[section].batch()?;
        let batch = match topic {
            Some(topic) => as_defined(&self.plan, topic, &stored)?,
            None => stored,
        };
        let table = Rc::new(Table { batch, rows: OnceCell::new(), rising: OnceCell::new() });
        looked.tables[section] = Some(table.clone());
        Ok(table)
    }
}

impl Table {
    /// The row of events of a topic that holds the id of another row, whose hash is known.
    pub fn find_id(&self, about: &TopicPlan, hash: u64, ids: &ArrayRef, row: usize) -> Option<usize> {
        let stored = self.batch.column(about.id);
        let rows = self.rows.get_or_init(|| {
            id_hashes(&about.name, stored)
                .into_iter()
                .enumerate()
                .rev()
                .map(|(row, hash)| (hash, row))
                .collect()
        });
        let found = *rows.get(&hash)?;
        if same_id(stored, found, ids, row) { Some(found) } else { find_id(stored, ids, row) }
    }

    /// The row whose event has this offset.
    pub fn find_offset(&self, column: usize, offset: i64) -> Option<usize> {
        let offsets = self.batch.column(column).as_primitive::<Int64Type>().values();
        if *self.rising.get_or_init(|| offsets.is_sorted()) {
            return offsets.binary_search(&offset).ok();
        }
        offsets.iter().position(|&each| each == offset)
    }
}
