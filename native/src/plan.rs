//! The compiled pipeline as the core reads it: every name resolved, every type known (`penstock.runtime.plan`).

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::schema::{Field, Schema, Type};
use crate::windows::StorePlan;

#[derive(Clone, Debug, Deserialize)]
pub struct Plan {
    pub name: String,
    pub topics: Vec<TopicPlan>,
    pub stores: Vec<KeyedPlan>,
    pub features: Vec<FeaturesPlan>,
    pub policies: Vec<PolicyPlan>,
    pub models: Vec<ModelPlan>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct TopicPlan {
    pub name: String,
    pub fields: Vec<Field>,
    /// Index of the field that names an event.
    pub id: usize,
    /// Index of the field that says when it happened.
    pub time: usize,
    pub retain_us: i64,
    pub lateness_us: i64,
    pub ahead_us: i64,
    /// Whether events that its door rejects are kept.
    pub dead_letters: bool,
}

/// What is remembered of one topic by one key.
#[derive(Clone, Debug, Deserialize)]
pub struct KeyedPlan {
    /// Index of the topic whose events are kept.
    pub source: usize,
    /// Names of the key's fields, in the source and in every topic that reads.
    pub key: Vec<String>,
    /// The typed plans of `plan.filters`, over the source's fields.
    pub filters: Vec<Value>,
    pub plan: StorePlan,
}

/// The columns that are added to a topic's events: reads of stores, then derived ones.
#[derive(Clone, Debug, Deserialize)]
pub struct FeaturesPlan {
    pub topic: usize,
    /// For each aggregate its store and the read within it.
    pub reads: Vec<(usize, usize)>,
    pub derived: Vec<(String, Value)>,
    /// All of them: the aggregates in the order of `reads`, then the derived ones.
    pub columns: Vec<Field>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct PolicyPlan {
    pub name: String,
    pub features: usize,
    pub model: Option<usize>,
    pub within_us: i64,
    pub fallback: String,
    /// What is told of an event that the disk has no room for.
    #[serde(default)]
    pub on_full: OnFull,
    /// Strongest first.
    pub outcomes: Vec<String>,
    pub default: String,
    /// In the order in which they decide.
    pub rules: Vec<RulePlan>,
    /// The text that decides what the policy says, and its digest.
    pub definition: String,
    pub version: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFull {
    #[default]
    Refuse,
    Fallback,
}

#[derive(Clone, Debug, Deserialize)]
pub struct RulePlan {
    pub name: String,
    pub code: String,
    /// Index into the policy's outcomes.
    pub outcome: usize,
    pub when: Value,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ModelPlan {
    pub name: String,
    pub version: String,
}

impl Plan {
    pub fn from_json(text: &str) -> Result<Plan> {
        serde_json::from_str(text)
            .map_err(|error| Error::invalid(format!("could not read the plan: {error}")))
    }

    /// The topic about whose events a policy decides.
    pub fn policy_topic(&self, policy: usize) -> usize {
        self.features[self.policies[policy].features].topic
    }

    pub fn decisions_schema(&self, policy: usize) -> Schema {
        let policy = &self.policies[policy];
        let features = &self.features[policy.features];
        let id = &self.topics[features.topic];
        let mut fields = vec![
            field("id", id.fields[id.id].kind, false),
            field("offset", Type::Int64, false),
            field("outcome", Type::Text, false),
            field("reasons", Type::Text, false),
            field("score", Type::Float64, true),
        ];
        fields.extend(features.columns.iter().cloned());
        fields.push(field("policy_version", Type::Text, false));
        fields.push(field("cause", Type::Text, true));
        fields.push(field("late", Type::Bool, true));
        Schema { fields }
    }

    /// What callers were told at a deadline: beside the decisions, because a decision may come later.
    pub fn timeouts_schema(&self, policy: usize) -> Schema {
        let id = &self.topics[self.policy_topic(policy)];
        Schema {
            fields: vec![
                field("id", id.fields[id.id].kind, false),
                field("offset", Type::Int64, false),
                field("outcome", Type::Text, false),
                field("policy_version", Type::Text, false),
                field("cause", Type::Text, false),
            ],
        }
    }
}

impl TopicPlan {
    pub fn schema(&self) -> Schema {
        Schema { fields: self.fields.clone() }
    }

    /// What the log notes of a topic: which fields have a meaning of their own. Exchanging them would misread every
    /// stored event.
    pub fn roles(&self) -> String {
        format!("id={} time={}", self.fields[self.id].name, self.fields[self.time].name)
    }
}

/// The key of a topic's note in the log.
pub fn roles_key(topic: &str) -> String {
    format!("{ROLES}{topic}")
}

const ROLES: &str = "topic/";

/// The topic that a note of the log is of, and its fields of ids and of times.
pub fn read_roles<'a>(key: &'a str, note: &'a str) -> Option<(&'a str, &'a str, &'a str)> {
    let (id, time) = note.strip_prefix("id=")?.split_once(" time=")?;
    Some((key.strip_prefix(ROLES)?, id, time))
}

fn field(name: &str, kind: Type, optional: bool) -> Field {
    Field { name: name.into(), kind, optional }
}
