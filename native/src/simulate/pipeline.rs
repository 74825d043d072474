//! The pipelines that a run draws, and how one changes between two starts.

use serde_json::json;

use super::chance::Chance;
use super::expression::{self as expr, Expression, Row};
use super::history::to_json;
use crate::plan::Plan;
use crate::schema::{Field, Type};
use crate::windows::{Aggregate, output_type};

pub const AMOUNT: Type = Type::Decimal(12, 2);
pub const SECOND: i64 = 1_000_000;
pub const AHEAD_US: i64 = 600 * SECOND;
pub const OUTCOMES: [&str; 3] = ["decline", "review", "approve"];

#[derive(Clone, Debug)]
pub struct Pipeline {
    pub topics: Vec<Topic>,
    pub policies: Vec<Policy>,
    /// Those that the user took out; any may come back, the last one first.
    pub removed: Vec<Policy>,
    /// The second topic, where the user took it out; it may come back.
    pub removed_topic: Option<Topic>,
}

#[derive(Clone, Debug)]
pub struct Topic {
    pub name: &'static str,
    pub fields: Vec<Field>,
    pub id: &'static str,
    pub time: &'static str,
    pub retain_us: i64,
    pub lateness_us: i64,
    pub dead_letters: bool,
}

#[derive(Clone, Debug)]
pub struct Policy {
    pub name: &'static str,
    pub topic: usize,
    pub features: Vec<Feature>,
    pub derived: Vec<(String, Expression)>,
    pub rules: Vec<Rule>,
    pub model: bool,
    pub on_full: &'static str,
}

/// An aggregate over a sliding window.
#[derive(Clone, Debug)]
pub struct Feature {
    pub name: String,
    pub source: usize,
    pub key: Vec<&'static str>,
    pub aggregate: Aggregate,
    pub column: Option<(&'static str, Type)>,
    pub filter: Option<Expression>,
    pub length_us: Option<i64>,
    pub delay_us: i64,
    pub include_current: bool,
}

#[derive(Clone, Debug)]
pub struct Rule {
    pub name: String,
    pub outcome: usize,
    pub when: Expression,
}

impl Pipeline {
    pub fn draw(chance: &mut Chance) -> Pipeline {
        let lateness_us = *chance.pick(&LATENESSES);
        let id = if chance.percent(50) { Type::Text } else { Type::Int64 };
        let mut topics = vec![payments(id, *chance.pick(&RETAINS), lateness_us)];
        if chance.percent(60) {
            topics.push(reports(*chance.pick(&RETAINS), lateness_us));
        }
        topics.iter_mut().for_each(|topic| topic.dead_letters = chance.percent(60));
        let mut pipeline =
            Pipeline { topics, policies: Vec::new(), removed: Vec::new(), removed_topic: None };
        let count = 1 + chance.below(3);
        for (index, &name) in ["authorise", "limits", "audit"].iter().enumerate().take(count) {
            let topic = if index == 2 { pipeline.topics.len() - 1 } else { 0 };
            let model = chance.percent(40);
            pipeline.policies.push(draw_policy(&pipeline.topics, name, topic, model, chance));
        }
        pipeline
    }

    /// What a user may do between two starts: a feature comes, goes or is defined anew, a rule changes, a field is
    /// added, loosened or moved, a policy or a topic goes or comes back, ids are remembered for longer or less long. The
    /// words are what changed.
    pub fn change(&mut self, chance: &mut Chance) -> &'static str {
        let count = self.policies.len();
        let policy = &mut self.policies[chance.below(count)];
        match chance.below(12) {
            0 => {
                let name = format!("g{}", chance.below(1000));
                if policy.features.iter().all(|feature| feature.name != name) {
                    let feature = draw_feature(&self.topics, policy.topic, name, chance);
                    policy.features.push(feature);
                }
                "a feature is added"
            }
            1 if policy.features.len() > 1 => {
                let index = chance.below(policy.features.len());
                policy.features.remove(index);
                policy.derived.clear();
                policy.rules = draw_rules(&self.topics, policy, chance);
                "a feature is removed"
            }
            2 => {
                let index = chance.below(policy.features.len());
                let feature = &mut policy.features[index];
                feature.length_us = *chance.pick(&LENGTHS);
                "a window gets another length"
            }
            3 => {
                let index = chance.below(self.topics.len());
                let fields = &mut self.topics[index].fields;
                let name = ["channel", "tip"][chance.below(2)];
                if fields.iter().all(|field| field.name != name) {
                    let kind = if name == "tip" { AMOUNT } else { Type::Text };
                    fields.push(Field { name: name.into(), kind, optional: true });
                }
                "an optional field is added"
            }
            4 => {
                let index = chance.below(self.topics.len());
                self.topics[index].lateness_us = *chance.pick(&LATENESSES);
                "the lateness of a topic"
            }
            5 if count > 1 && chance.percent(50) => {
                self.removed.extend(self.policies.pop());
                "a policy is removed"
            }
            5 => {
                let topics = self.topics.len();
                self.policies.extend(self.removed.pop_if(|policy| policy.topic < topics));
                "a policy comes back"
            }
            6 => {
                let index = chance.below(self.topics.len());
                let topic = &mut self.topics[index];
                topic.dead_letters = !topic.dead_letters;
                policy.on_full = *chance.pick(&ON_FULL);
                "what is kept or told of events that are not taken"
            }
            7 => {
                let topic = chance.below(self.topics.len());
                let Topic { fields, id, time, .. } = &mut self.topics[topic];
                let required =
                    |field: &&mut Field| !field.optional && field.name != *id && field.name != *time;
                if let Some(field) = fields.iter_mut().find(required) {
                    field.optional = true;
                }
                "a field is optional from now on"
            }
            8 => {
                let topic = chance.below(self.topics.len());
                chance.shuffle(&mut self.topics[topic].fields);
                "a topic's fields are in another order"
            }
            9 if self.topics.len() > 1 => {
                self.remove_topic(chance);
                "a topic is removed"
            }
            9 => {
                self.topics.extend(self.removed_topic.take());
                "a topic comes back"
            }
            10 => {
                let index = chance.below(self.topics.len());
                self.topics[index].retain_us = *chance.pick(&RETAINS);
                "how long a topic's ids are remembered"
            }
            _ => {
                policy.rules = draw_rules(&self.topics, policy, chance);
                "the rules change"
            }
        }
    }

    /// What would misread the log, what it is, and a part of what a start says to it; none where nothing can be.
    pub fn mistake(&self, chance: &mut Chance) -> Option<(Pipeline, &'static str, &'static str)> {
        let mut mistaken = self.clone();
        let index = chance.below(self.topics.len());
        let Topic { fields, id, time, .. } = &mut mistaken.topics[index];
        let what = match chance.below(5) {
            0 => {
                fields.push(Field { name: "new".into(), kind: Type::Int64, optional: false });
                "a field that stored events lack"
            }
            1 => {
                let field = fields.iter_mut().find(|field| field.name == *id).expect("a topic has an id");
                field.kind = if field.kind == Type::Text { Type::Int64 } else { Type::Text };
                "an id of another type"
            }
            2 => {
                let field = fields.iter_mut().find(|field| field.name == "note").expect("each topic has it");
                field.name = "remark".into();
                "a field with another name"
            }
            3 => {
                fields.push(Field { name: "at".into(), kind: Type::Timestamp, optional: true });
                *time = "at";
                "another time of the event"
            }
            _ => {
                let other = (self.policies[0].topic + 1) % self.topics.len();
                if other == self.policies[0].topic {
                    return None;
                }
                mistaken.policies[0] = draw_policy(&self.topics, self.policies[0].name, other, false, chance);
                return Some((mistaken, "a policy of another topic", "decided on topic"));
            }
        };
        Some((mistaken, what, "would be misread"))
    }

    /// The longest time that a topic remembers its ids.
    pub fn retain_us(&self) -> i64 {
        self.topics.iter().map(|topic| topic.retain_us).max().unwrap_or(0)
    }

    /// With the policy that decides on it, and all features of its events.
    fn remove_topic(&mut self, chance: &mut Chance) {
        self.removed_topic = self.topics.pop();
        let left = self.topics.len();
        self.removed.extend(self.policies.pop_if(|policy| policy.topic == left));
        for policy in self.policies.iter_mut().chain(&mut self.removed).filter(|policy| policy.topic < left) {
            policy.features.retain(|feature| feature.source < left);
            if policy.features.is_empty() {
                policy.features.push(draw_feature(&self.topics, policy.topic, "f0".into(), chance));
            }
            policy.derived.clear();
            policy.rules = draw_rules(&self.topics, policy, chance);
        }
    }

    /// Everything that was taken out is there again.
    pub fn restore(&mut self) {
        self.topics.extend(self.removed_topic.take());
        self.policies.extend(std::mem::take(&mut self.removed).into_iter().rev());
    }

    /// Another one for all that decides otherwise.
    pub fn version(&self, policy: &Policy) -> String {
        let lateness_us = self.topics.iter().map(|topic| topic.lateness_us).collect::<Vec<_>>();
        let Policy { topic, features, derived, rules, model, .. } = policy;
        let text = format!("{topic}{lateness_us:?}{features:?}{derived:?}{rules:?}{model:?}");
        format!("{:016x}", xxhash_rust::xxh3::xxh3_64(text.as_bytes()))
    }

    /// As the core reads it, laid out as `penstock.runtime.plan` does.
    pub fn plan(&self) -> Plan {
        let mut stores: Vec<StoreDraft> = Vec::new();
        let mut features = Vec::new();
        for policy in &self.policies {
            let reads: Vec<_> =
                policy.features.iter().map(|feature| add_read(&mut stores, feature)).collect();
            let derived: Vec<_> =
                policy.derived.iter().map(|(name, expression)| json!([name, expression.plan()])).collect();
            let columns: Vec<_> = policy.columns().into_iter().map(|field| json!(field)).collect();
            features
                .push(json!({"topic": policy.topic, "reads": reads, "derived": derived, "columns": columns}));
        }
        let policies = self.policies.iter().enumerate().map(|(index, policy)| {
            let rules = policy.rules.iter().map(|rule| {
                json!({"name": rule.name, "code": rule.name, "outcome": rule.outcome, "when": rule.when.plan()})
            });
            json!({
                "name": policy.name, "features": index, "model": policy.model.then_some(0), "within_us": 50_000,
                "on_full": policy.on_full,
                "fallback": policy.fallback(), "outcomes": OUTCOMES, "default": "approve",
                "rules": rules.collect::<Vec<_>>(),
                "definition": self.version(policy), "version": self.version(policy),
            })
        });
        let document = json!({
            "name": "simulated",
            "topics": self.topics.iter().map(Topic::plan).collect::<Vec<_>>(),
            "stores": stores.iter().map(|store| store.plan(&self.topics)).collect::<Vec<_>>(),
            "features": features,
            "policies": policies.collect::<Vec<_>>(),
            "models": [{"name": "risk", "version": "1"}],
        });
        Plan::from_json(&document.to_string()).expect("the plan is one")
    }
}

impl Topic {
    pub fn id_json(&self, row: &Row) -> serde_json::Value {
        to_json(row.get(self.id), self.id_type())
    }

    pub fn id_type(&self) -> Type {
        self.fields.iter().find(|field| field.name == self.id).expect("a topic has an id").kind
    }

    fn plan(&self) -> serde_json::Value {
        let place = |name: &str| self.fields.iter().position(|field| field.name == name);
        json!({
            "name": self.name, "fields": self.fields, "id": place(self.id), "time": place(self.time),
            "retain_us": self.retain_us, "lateness_us": self.lateness_us, "ahead_us": AHEAD_US,
            "dead_letters": self.dead_letters,
        })
    }
}

impl Policy {
    /// Features, then derived ones.
    pub fn columns(&self) -> Vec<Field> {
        let field = |name: &str, kind| Field { name: name.into(), kind, optional: true };
        let features = self.features.iter().map(|feature| field(&feature.name, feature.kind()));
        let derived = self.derived.iter().map(|(name, expression)| field(name, expression.kind()));
        features.chain(derived).collect()
    }

    pub fn fallback(&self) -> &'static str {
        if self.model { "review" } else { "approve" }
    }
}

impl Feature {
    pub fn kind(&self) -> Type {
        output_type(self.aggregate, self.column.map(|(_, kind)| kind))
            .expect("the aggregate takes the column")
    }
}

// How features share what is remembered.

struct StoreDraft {
    source: usize,
    key: Vec<&'static str>,
    endless_delay_us: Option<i64>,
    columns: Vec<(&'static str, Type)>,
    filters: Vec<Expression>,
    reads: Vec<serde_json::Value>,
}

fn add_read(stores: &mut Vec<StoreDraft>, feature: &Feature) -> (usize, usize) {
    let endless_delay_us = feature.length_us.is_none().then_some(feature.delay_us);
    let same = |store: &StoreDraft| {
        (store.source, &store.key, store.endless_delay_us) == (feature.source, &feature.key, endless_delay_us)
    };
    let index = stores.iter().position(same).unwrap_or_else(|| {
        let key = feature.key.clone();
        let (columns, filters, reads) = (Vec::new(), Vec::new(), Vec::new());
        stores.push(StoreDraft { source: feature.source, key, endless_delay_us, columns, filters, reads });
        stores.len() - 1
    });
    let store = &mut stores[index];
    let column = feature.column.map(|column| place(&mut store.columns, column, |one, other| one == other));
    let filter = feature.filter.clone().map(|filter| place(&mut store.filters, filter, same_text));
    let read = json!({
        "aggregate": feature.aggregate, "column": column, "filter": filter, "length_us": feature.length_us,
        "delay_us": feature.delay_us, "include_current": feature.include_current,
    });
    (index, place(&mut store.reads, read, |one, other| one == other))
}

fn same_text(one: &Expression, other: &Expression) -> bool {
    format!("{one:?}") == format!("{other:?}")
}

fn place<T>(items: &mut Vec<T>, item: T, same: impl Fn(&T, &T) -> bool) -> usize {
    items.iter().position(|known| same(known, &item)).unwrap_or_else(|| {
        items.push(item);
        items.len() - 1
    })
}

impl StoreDraft {
    fn plan(&self, topics: &[Topic]) -> serde_json::Value {
        let kind =
            |name: &str| topics[self.source].fields.iter().find(|field| field.name == name).unwrap().kind;
        json!({
            "source": self.source,
            "key": self.key,
            "filters": self.filters.iter().map(Expression::plan).collect::<Vec<_>>(),
            "plan": {
                "key": self.key.iter().map(|name| kind(name)).collect::<Vec<_>>(),
                "columns": self.columns,
                "filters": self.filters.iter().map(|filter| format!("{filter:?}")).collect::<Vec<_>>(),
                "reads": self.reads,
            },
        })
    }
}

// What is drawn.

const RETAINS: [i64; 2] = [60 * SECOND, 3600 * SECOND];
const LATENESSES: [i64; 2] = [30 * SECOND, 120 * SECOND];
const ON_FULL: [&str; 2] = ["refuse", "fallback"];
const LENGTHS: [Option<i64>; 5] =
    [Some(10 * SECOND), Some(60 * SECOND), Some(600 * SECOND), Some(3600 * SECOND), None];

fn payments(id: Type, retain_us: i64, lateness_us: i64) -> Topic {
    let field = |name: &str, kind, optional| Field { name: name.into(), kind, optional };
    let fields = vec![
        field("payment", id, false),
        field("card", Type::Text, true),
        field("shop", Type::Int64, false),
        field("items", Type::Int64, true),
        field("note", Type::Text, true),
        field("amount", AMOUNT, false),
        field("paid_at", Type::Timestamp, false),
    ];
    Topic {
        name: "payments",
        fields,
        id: "payment",
        time: "paid_at",
        retain_us,
        lateness_us,
        dead_letters: false,
    }
}

fn reports(retain_us: i64, lateness_us: i64) -> Topic {
    let field = |name: &str, kind, optional| Field { name: name.into(), kind, optional };
    let fields = vec![
        field("report", Type::Int64, false),
        field("card", Type::Text, true),
        field("note", Type::Text, true),
        field("amount", AMOUNT, true),
        field("seen_at", Type::Timestamp, false),
    ];
    Topic {
        name: "reports",
        fields,
        id: "report",
        time: "seen_at",
        retain_us,
        lateness_us,
        dead_letters: false,
    }
}

fn draw_policy(
    topics: &[Topic],
    name: &'static str,
    topic: usize,
    model: bool,
    chance: &mut Chance,
) -> Policy {
    let count = 1 + chance.below(5);
    let features = (0..count).map(|index| draw_feature(topics, topic, format!("f{index}"), chance)).collect();
    let on_full = *chance.pick(&ON_FULL);
    let mut policy = Policy { name, topic, features, derived: Vec::new(), rules: Vec::new(), model, on_full };
    policy.derived = draw_derived(&policy, chance);
    policy.rules = draw_rules(topics, &policy, chance);
    policy
}

fn draw_feature(topics: &[Topic], topic: usize, name: String, chance: &mut Chance) -> Feature {
    let source = chance.below(topics.len());
    let keys: &[&[&str]] = if topics[source].name == "payments" && topics[topic].name == "payments" {
        &[&["card"], &["shop"], &["card", "shop"]]
    } else {
        &[&["card"]]
    };
    let columns: &[(&str, Type)] = match topics[source].name {
        "payments" => &[("items", Type::Int64), ("note", Type::Text), ("amount", AMOUNT)],
        _ => &[("note", Type::Text), ("amount", AMOUNT)],
    };
    let column = *chance.pick(columns);
    let mut any = vec![Aggregate::NUnique, Aggregate::First, Aggregate::Last, Aggregate::Min, Aggregate::Max];
    any.push(Aggregate::Lag(1 + chance.below(3) as u32));
    if column.1 != Type::Text {
        any.extend([Aggregate::Sum, Aggregate::Mean, Aggregate::Std, Aggregate::Var]);
    }
    let (aggregate, column) = match chance.below(10) {
        0..=2 => (Aggregate::Count, None),
        3 => (Aggregate::SinceLast, None),
        _ => (*chance.pick(&any), Some(column)),
    };
    Feature {
        name,
        source,
        key: chance.pick(keys).to_vec(),
        aggregate,
        column,
        filter: chance.percent(30).then(|| draw_filter(chance)),
        length_us: *chance.pick(&LENGTHS),
        delay_us: if chance.percent(25) { *chance.pick(&[20 * SECOND, 300 * SECOND]) } else { 0 },
        include_current: chance.percent(75),
    }
}

fn draw_filter(chance: &mut Chance) -> Expression {
    let amount = || expr::column("amount", AMOUNT);
    match chance.below(3) {
        0 => expr::test("greater", vec![amount(), expr::hundredths(chance.between(0, 60_000))]),
        1 => expr::test("not", vec![expr::test("is_null", vec![expr::column("note", Type::Text)])]),
        _ => expr::test("equal", vec![expr::column("note", Type::Text), expr::text("red")]),
    }
}

/// Up to two: a whole number that may be null made one that is not, and a share of it.
fn draw_derived(policy: &Policy, chance: &mut Chance) -> Vec<(String, Expression)> {
    let count = policy.features.iter().find(|feature| feature.kind() == Type::Int64);
    let Some(count) = count.filter(|_| chance.percent(60)) else { return Vec::new() };
    let known =
        expr::call("coalesce", Type::Int64, vec![expr::column(&count.name, Type::Int64), expr::integer(-1)]);
    let sum = expr::call("add", Type::Int64, vec![known, expr::integer(chance.between(0, 2))]);
    let as_float = |name: &str| expr::call("cast", Type::Float64, vec![expr::column(name, Type::Int64)]);
    let share = expr::call("divide", Type::Float64, vec![as_float(&count.name), as_float("known")]);
    vec![("known".into(), sum), ("share".into(), share)]
}

fn draw_rules(topics: &[Topic], policy: &Policy, chance: &mut Chance) -> Vec<Rule> {
    let count = chance.below(4);
    let rule = |index: usize| Rule {
        name: format!("r{index}"),
        outcome: chance.below(OUTCOMES.len()),
        when: {
            let (one, other) =
                (draw_condition(topics, policy, chance), draw_condition(topics, policy, chance));
            match chance.below(3) {
                0 => expr::test("and", vec![one, other]),
                1 => expr::test("or", vec![one, other]),
                _ => one,
            }
        },
    };
    (0..count).map(rule).collect()
}

fn draw_condition(topics: &[Topic], policy: &Policy, chance: &mut Chance) -> Expression {
    let mut columns = policy.columns();
    columns.extend(topics[policy.topic].fields.iter().cloned());
    if policy.model {
        columns.push(Field { name: "score".into(), kind: Type::Float64, optional: true });
    }
    let field = chance.pick(&columns);
    let known = expr::column(&field.name, field.kind);
    let operation = *chance.pick(&["greater", "less", "equal"]);
    match field.kind {
        Type::Int64 => expr::test(operation, vec![known, expr::integer(chance.between(0, 4))]),
        Type::Float64 => expr::test("greater", vec![known, expr::float(chance.between(0, 10) as f64 / 4.0)]),
        Type::Text => expr::test("equal", vec![known, expr::text("red")]),
        Type::Decimal(..) => expr::test("greater", vec![known, expr::hundredths(chance.between(0, 90_000))]),
        Type::Bool | Type::Timestamp => expr::test("is_null", vec![known]),
    }
}
