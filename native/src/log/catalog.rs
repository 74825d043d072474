//! What a reader must know to understand commits: topics, schemas, and small notes of the callers.
//!
//! It is written whole at the start of each segment, so that older segments can go, and each change is written with
//! the commit that brings it, before the rows that need it.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_schema::SchemaRef;
use serde::{Deserialize, Serialize};

use super::columns::{Decoded, Fault};
use crate::schema::{Field, Schema};

/// What the keys of consumers' positions begin with.
pub(super) const POSITION_PREFIX: &str = "consumer/";

#[derive(Clone, Debug, Default)]
pub struct Catalog {
    topics: Vec<Topic>,
    schemas: Vec<Arc<StoredSchema>>,
    notes: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    pub name: Arc<str>,
    /// The offset that the topic's next row will have.
    pub next_offset: u64,
}

/// One version of a topic's schema; its id is its place in the catalog.
#[derive(Debug)]
pub struct StoredSchema {
    pub id: u32,
    pub topic: Arc<str>,
    /// 1 for a topic's first.
    pub version: u32,
    pub schema: Schema,
    pub arrow: SchemaRef,
}

impl Catalog {
    /// In the order of their first definition.
    pub fn topics(&self) -> &[Topic] {
        &self.topics
    }

    /// By id.
    pub fn schemas(&self) -> &[Arc<StoredSchema>] {
        &self.schemas
    }

    pub fn notes(&self) -> &BTreeMap<String, String> {
        &self.notes
    }

    pub fn topic(&self, name: &str) -> Option<&Topic> {
        self.topics.iter().find(|topic| &*topic.name == name)
    }

    /// The offset that the topic's next row will have: 0 where there is none yet.
    pub fn next_offset(&self, topic: &str) -> u64 {
        self.topic(topic).map_or(0, |topic| topic.next_offset)
    }

    pub fn schema(&self, id: u32) -> Option<&Arc<StoredSchema>> {
        self.schemas.get(id as usize)
    }

    /// How far a consumer has come in a topic: the offset of the next row that it wants.
    pub fn position(&self, consumer: &str, topic: &str) -> Option<u64> {
        self.notes.get(&position_key(consumer, topic))?.parse().ok()
    }

    /// A small number for a topic that stays the same for as long as the log lives; 0 is none.
    pub fn origin(&self, topic: &str) -> u16 {
        self.topics.iter().position(|known| &*known.name == topic).map_or(0, |index| index as u16 + 1)
    }

    pub fn topic_of_origin(&self, origin: u16) -> Option<&str> {
        self.topics.get((origin as usize).checked_sub(1)?).map(|topic| &*topic.name)
    }

    /// The schema that the topic's rows have now.
    pub fn newest_schema(&self, topic: &str) -> Option<&Arc<StoredSchema>> {
        self.schemas.iter().rev().find(|schema| &*schema.topic == topic)
    }

    /// Rows were appended to a topic: its offsets must go on where they stopped.
    pub(super) fn advance(&mut self, topic: &str, base_offset: u64, rows: u64) -> Decoded<()> {
        let topic =
            self.topics.iter_mut().find(|known| &*known.name == topic).ok_or("rows of an unknown topic")?;
        if topic.next_offset != base_offset {
            let Topic { name, next_offset } = topic;
            return Err(format!("topic {name:?} goes on at offset {base_offset}, but {next_offset} is next"));
        }
        topic.next_offset += rows;
        Ok(())
    }

    /// Commits are missing: the topic goes on at an offset.
    pub(super) fn resume(&mut self, topic: &str, offset: u64) {
        for known in self.topics.iter_mut().filter(|known| &*known.name == topic) {
            known.next_offset = offset;
        }
    }

    pub(super) fn apply(&mut self, changes: &Changes) -> Decoded<()> {
        changes.schemas.iter().try_for_each(|schema| self.add(schema.clone()))?;
        for (key, text) in &changes.notes {
            match text {
                Some(text) => self.notes.insert(key.clone(), text.clone()),
                None => self.notes.remove(key),
            };
        }
        Ok(())
    }

    fn add(&mut self, schema: Arc<StoredSchema>) -> Decoded<()> {
        if schema.id as usize != self.schemas.len() {
            return Err(format!("schema {} stands where {} is next", schema.id, self.schemas.len()));
        }
        if self.topic(&schema.topic).is_none() {
            self.topics.push(Topic { name: schema.topic.clone(), next_offset: 0 });
        }
        self.schemas.push(schema);
        Ok(())
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let topics = self
            .topics
            .iter()
            .map(|topic| TopicRecord { name: topic.name.to_string(), next_offset: topic.next_offset });
        let whole = CatalogRecord {
            topics: topics.collect(),
            schemas: self.schemas.iter().map(|schema| schema.record()).collect(),
            notes: self.notes.clone(),
        };
        serde_json::to_vec(&whole).expect("a catalog is plain JSON")
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Decoded<Catalog> {
        let whole: CatalogRecord = serde_json::from_slice(bytes).map_err(unreadable)?;
        let mut catalog = Catalog { notes: whole.notes, ..Catalog::default() };
        whole.schemas.into_iter().try_for_each(|record| catalog.add(record.stored()))?;
        for topic in whole.topics {
            catalog.advance(&topic.name, 0, topic.next_offset)?;
        }
        Ok(catalog)
    }
}

impl StoredSchema {
    pub(super) fn new(id: u32, topic: &str, version: u32, schema: Schema) -> Arc<StoredSchema> {
        let arrow = schema.arrow();
        Arc::new(StoredSchema { id, topic: topic.into(), version, schema, arrow })
    }

    fn record(&self) -> SchemaRecord {
        let StoredSchema { id, topic, version, schema, .. } = self;
        SchemaRecord { id: *id, topic: topic.to_string(), version: *version, fields: schema.fields.clone() }
    }
}

/// What the next commit changes in the catalog.
#[derive(Clone, Debug, Default)]
pub(super) struct Changes {
    pub schemas: Vec<Arc<StoredSchema>>,
    pub notes: BTreeMap<String, Option<String>>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.schemas.is_empty() && self.notes.is_empty()
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let schemas = self.schemas.iter().map(|schema| schema.record()).collect();
        let record = ChangesRecord { schemas, notes: self.notes.clone() };
        serde_json::to_vec(&record).expect("changes are plain JSON")
    }

    pub fn from_bytes(bytes: &[u8]) -> Decoded<Changes> {
        let record: ChangesRecord = serde_json::from_slice(bytes).map_err(unreadable)?;
        let schemas = record.schemas.into_iter().map(SchemaRecord::stored).collect();
        Ok(Changes { schemas, notes: record.notes })
    }
}

pub(super) fn position_key(consumer: &str, topic: &str) -> String {
    format!("{POSITION_PREFIX}{consumer}/{topic}")
}

fn unreadable(error: serde_json::Error) -> Fault {
    format!("the catalog cannot be read: {error}")
}

#[derive(Serialize, Deserialize)]
struct CatalogRecord {
    topics: Vec<TopicRecord>,
    schemas: Vec<SchemaRecord>,
    notes: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct ChangesRecord {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    schemas: Vec<SchemaRecord>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    notes: BTreeMap<String, Option<String>>,
}

#[derive(Serialize, Deserialize)]
struct TopicRecord {
    name: String,
    next_offset: u64,
}

#[derive(Serialize, Deserialize)]
struct SchemaRecord {
    id: u32,
    topic: String,
    version: u32,
    fields: Vec<Field>,
}

impl SchemaRecord {
    fn stored(self) -> Arc<StoredSchema> {
        StoredSchema::new(self.id, &self.topic, self.version, Schema { fields: self.fields })
    }
}
