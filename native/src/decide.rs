//! A policy over a batch: which rules fire, what is decided, and the table that holds it.

use std::fmt::{self, Write};
use std::sync::Arc;

use arrow_array::builder::{BooleanBuilder, ListBuilder, StringBuilder};
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow_schema::SchemaRef;

use crate::engine::{LATE, STATELESS};
use crate::error::{Error, Result};
use crate::evaluate::Program;
use crate::plan::Plan;
use crate::schema::{Field, Type};

pub struct Decider {
    plan: Arc<Plan>,
    policy: usize,
    rules: Program,
    decisions: SchemaRef,
    /// `{"rule":"…","code":"…"}` of each rule.
    reasons: Vec<String>,
}

/// What a policy says of each row.
pub struct Verdicts {
    /// Index into the policy's outcomes.
    pub outcomes: Vec<usize>,
    /// The rules that fired, the deciding one first.
    pub fired: Vec<Vec<u16>>,
    /// Why a row got the fallback, where it did.
    pub causes: Vec<Option<&'static str>>,
    pub faults: u64,
}

/// The rows that a policy decides about, with all that it sees of them.
pub struct Case<'a> {
    pub events: &'a RecordBatch,
    pub features: &'a [ArrayRef],
    pub score: &'a ArrayRef,
    pub marks: &'a [u8],
    /// The rows' offsets in their topic.
    pub offsets: &'a [i64],
}

impl Decider {
    pub fn new(plan: &Arc<Plan>, policy: usize) -> Result<Decider> {
        let about = &plan.policies[policy];
        let features = &plan.features[about.features];
        let mut columns = plan.topics[features.topic].fields.clone();
        columns.extend(features.columns.iter().cloned());
        columns.push(Field { name: "score".into(), kind: Type::Float64, optional: true });
        let rules: Vec<_> = about.rules.iter().map(|rule| (rule.name.clone(), rule.when.clone())).collect();
        Ok(Decider {
            rules: Program::new(&rules, &columns)?,
            decisions: plan.decisions_schema(policy).arrow(),
            reasons: about.rules.iter().map(|rule| reason(&rule.name, &rule.code)).collect(),
            plan: plan.clone(),
            policy,
        })
    }

    /// Evaluate all rules over all rows.
    pub fn decide(&self, case: &Case) -> Result<Verdicts> {
        let about = &self.plan.policies[self.policy];
        let rows = case.events.num_rows();
        let mut inputs: Vec<ArrayRef> = case.events.columns().to_vec();
        inputs.extend(case.features.iter().cloned());
        inputs.push(case.score.clone());
        let (fired, faults) = self.rules.evaluate(&inputs, rows)?;
        let mut verdicts = Verdicts {
            outcomes: vec![self.outcome(&about.default)?; rows],
            fired: vec![Vec::new(); rows],
            causes: vec![None; rows],
            faults,
        };
        for (index, (fires, rule)) in fired.iter().zip(&about.rules).enumerate() {
            for row in set_rows(fires) {
                // Rules stand in the order in which they decide, so the first to fire is the deciding one.
                if verdicts.fired[row].is_empty() {
                    verdicts.outcomes[row] = rule.outcome;
                }
                verdicts.fired[row].push(index as u16);
            }
        }
        self.fall_back_where_full(case.marks, &mut verdicts)?;
        Ok(verdicts)
    }

    /// Every row gets the fallback, for one cause.
    pub fn fall_back(&self, rows: usize, cause: &'static str) -> Result<Verdicts> {
        let fallback = self.outcome(&self.plan.policies[self.policy].fallback)?;
        Ok(Verdicts {
            outcomes: vec![fallback; rows],
            fired: vec![Vec::new(); rows],
            causes: vec![Some(cause); rows],
            faults: 0,
        })
    }

    /// The table of decisions, one row a verdict.
    pub fn table(&self, case: &Case, verdicts: &Verdicts) -> Result<RecordBatch> {
        let about = &self.plan.policies[self.policy];
        let rows = case.events.num_rows();
        let topic = &self.plan.topics[self.plan.policy_topic(self.policy)];
        let mut columns: Vec<ArrayRef> = vec![
            case.events.column(topic.id).clone(),
            Arc::new(Int64Array::from(case.offsets.to_vec())),
            self.outcome_column(verdicts),
            self.reasons_column(verdicts),
            case.score.clone(),
        ];
        columns.extend(case.features.iter().cloned());
        columns.push(Arc::new(StringArray::from_iter_values((0..rows).map(|_| &about.version))));
        columns.push(Arc::new(StringArray::from_iter(verdicts.causes.iter().copied())));
        columns.push(late_column(case.marks));
        RecordBatch::try_new(self.decisions.clone(), columns)
            .map_err(|error| Error::invalid(format!("a decision does not fit its table: {error}")))
    }

    pub fn outcome_column(&self, verdicts: &Verdicts) -> ArrayRef {
        let outcomes = &self.plan.policies[self.policy].outcomes;
        Arc::new(StringArray::from_iter_values(verdicts.outcomes.iter().map(|&outcome| &outcomes[outcome])))
    }

    /// The names of the rules that fired, as lists: what replay writes.
    pub fn rule_column(&self, verdicts: &Verdicts) -> ArrayRef {
        let rules = &self.plan.policies[self.policy].rules;
        let mut lists = ListBuilder::new(StringBuilder::new());
        for fired in &verdicts.fired {
            for &rule in fired {
                lists.values().append_value(&rules[rule as usize].name);
            }
            lists.append(true);
        }
        Arc::new(lists.finish())
    }

    fn fall_back_where_full(&self, marks: &[u8], verdicts: &mut Verdicts) -> Result<()> {
        for (row, mark) in marks.iter().enumerate() {
            if mark & STATELESS != 0 {
                verdicts.outcomes[row] = self.outcome(&self.plan.policies[self.policy].fallback)?;
                verdicts.fired[row].clear();
                verdicts.causes[row] = Some("state_full");
            }
        }
        Ok(())
    }

    fn outcome(&self, name: &str) -> Result<usize> {
        let outcomes = &self.plan.policies[self.policy].outcomes;
        let found = outcomes.iter().position(|outcome| outcome == name);
        found.ok_or_else(|| Error::invalid(format!("the plan has no outcome \"{name}\"")))
    }

    fn reasons_column(&self, verdicts: &Verdicts) -> ArrayRef {
        let mut column = StringBuilder::with_capacity(verdicts.fired.len(), 64 * verdicts.fired.len());
        for fired in &verdicts.fired {
            write_json_list(&mut column, fired.iter().map(|&rule| self.reasons[rule as usize].as_str()))
                .expect("writing to memory cannot fail");
            column.append_value("");
        }
        Arc::new(column.finish())
    }
}

fn write_json_list<'a>(out: &mut impl Write, elements: impl Iterator<Item = &'a str>) -> fmt::Result {
    out.write_char('[')?;
    for (index, element) in elements.enumerate() {
        if index > 0 {
            out.write_char(',')?;
        }
        out.write_str(element)?;
    }
    out.write_char(']')
}

/// A score column of nothing but null, for policies without a model.
pub fn no_score(rows: usize) -> ArrayRef {
    Arc::new(Float64Array::new_null(rows))
}

fn late_column(marks: &[u8]) -> ArrayRef {
    let mut late = BooleanBuilder::with_capacity(marks.len());
    for mark in marks {
        late.append_option((mark & LATE != 0).then_some(true));
    }
    Arc::new(late.finish())
}

/// The rows where a rule's condition is true; null does not fire.
fn set_rows(fires: &ArrayRef) -> impl Iterator<Item = usize> {
    let fires = fires.as_boolean();
    let bits = match fires.nulls() {
        Some(nulls) => fires.values() & nulls.inner(),
        None => fires.values().clone(),
    };
    bits.set_indices().collect::<Vec<_>>().into_iter()
}

fn reason(rule: &str, code: &str) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    format!("{{\"rule\":{},\"code\":{}}}", quoted(rule), quoted(code))
}
