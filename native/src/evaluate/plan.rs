//! From a plan's JSON to nodes: names bound, types checked, equal operations merged.
//!
//! A plan comes from `penstock.process.expressions`, which settles every type. It is checked again
//! here, because what follows relies on it: a wrong plan is an error at binding, never a panic.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::column::{Column, Scalar};
use super::comparison::Members;
use super::fold;
use super::time::Unit;
use crate::error::{Error, Result};
use crate::schema::{Field, Type};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Operation {
    Column,
    Literal,
    Cast,
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
    Negate,
    Absolute,
    Round,
    Floor,
    Ceil,
    Ln,
    Exp,
    Sqrt,
    Power,
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    In,
    And,
    Or,
    Not,
    IsNull,
    Case,
    Coalesce,
    Least,
    Greatest,
    Lower,
    Upper,
    Length,
    Substr,
    StartsWith,
    Like,
    Extract,
    DateTrunc,
}

/// One operation as the plan writes it; `args` are places of earlier ones in the same plan.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    op: Operation,
    #[serde(rename = "type")]
    kind: Type,
    #[serde(default)]
    args: Vec<usize>,
    name: Option<String>,
    value: Option<Value>,
    #[serde(default)]
    digits: i32,
    unit: Option<Unit>,
    escape: Option<char>,
}

/// One operation of a program; `args` are places of earlier nodes.
#[derive(Debug)]
pub(super) struct Node {
    pub operation: Operation,
    pub kind: Type,
    pub args: Vec<usize>,
    pub arg_kinds: Vec<Type>,
    /// A column's place among those that the program is bound to.
    pub position: usize,
    pub digits: i32,
    pub unit: Option<Unit>,
    pub escape: Option<char>,
    pub members: Option<Members>,
    pub constant: Option<Constant>,
}

#[derive(Clone, Debug)]
pub(super) struct Constant {
    pub value: Scalar,
    pub fault: bool,
}

pub(super) struct Bound {
    pub nodes: Vec<Node>,
    pub outputs: Vec<usize>,
    pub columns: Vec<usize>,
}

pub(super) fn bind(plans: &[(String, Value)], columns: &[Field]) -> Result<Bound> {
    let mut binder = Binder::new(columns);
    for (name, plan) in plans {
        let place = binder.plan(plan).map_err(|error| match error {
            Error::Invalid { what, hint } => {
                Error::Invalid { what: format!("the plan of \"{name}\" does not fit: {what}"), hint }
            }
            other => other,
        })?;
        binder.outputs.push(place);
        binder.named.insert(name, place);
    }
    let mut used: Vec<usize> =
        binder.nodes.iter().filter(|node| node.is_column()).map(|node| node.position).collect();
    used.sort_unstable();
    Ok(Bound { nodes: binder.nodes, outputs: binder.outputs, columns: used })
}

struct Binder<'a> {
    columns: HashMap<&'a str, usize>,
    fields: &'a [Field],
    named: HashMap<&'a str, usize>,
    outputs: Vec<usize>,
    nodes: Vec<Node>,
    /// What constant nodes are; beside the others nothing of use.
    slots: Vec<Column>,
    /// Each distinct operation's place, by its text.
    places: HashMap<String, usize>,
}

impl<'a> Binder<'a> {
    fn new(fields: &'a [Field]) -> Binder<'a> {
        let columns = fields.iter().enumerate().map(|(place, field)| (field.name.as_str(), place)).collect();
        Binder {
            columns,
            fields,
            named: HashMap::new(),
            outputs: Vec::new(),
            nodes: Vec::new(),
            slots: Vec::new(),
            places: HashMap::new(),
        }
    }

    fn plan(&mut self, plan: &Value) -> Result<usize> {
        let steps = Vec::<Step>::deserialize(plan).map_err(|error| Error::invalid(error.to_string()))?;
        let mut places: Vec<usize> = Vec::with_capacity(steps.len());
        for mut step in steps {
            for arg in &mut step.args {
                *arg = *places.get(*arg).ok_or_else(|| Error::invalid("an argument comes after its use"))?;
            }
            places.push(self.step(step)?);
        }
        places.pop().ok_or_else(|| Error::invalid("it is empty"))
    }

    /// The node's place: of an equal one if there is one.
    fn step(&mut self, step: Step) -> Result<usize> {
        if let Some(place) = self.earlier_result(&step)? {
            return Ok(place);
        }
        let text = serde_json::to_string(&step).map_err(|error| Error::invalid(error.to_string()))?;
        if let Some(&place) = self.places.get(&text) {
            return Ok(place);
        }
        let node = self.node(step)?;
        let slot = node.constant.as_ref().map_or(Scalar::Null, |constant| constant.value.clone());
        self.slots.push(Column::One(slot));
        self.nodes.push(node);
        self.places.insert(text, self.nodes.len() - 1);
        Ok(self.nodes.len() - 1)
    }

    /// Where a step names the result of an earlier plan.
    fn earlier_result(&self, step: &Step) -> Result<Option<usize>> {
        let name = step.name.as_deref().unwrap_or_default();
        if step.op != Operation::Column || self.columns.contains_key(name) {
            return Ok(None);
        }
        let &place = self.named.get(name).ok_or_else(|| {
            Error::invalid(format!("there is neither a column nor an earlier plan \"{name}\""))
        })?;
        same_kind(name, step.kind, self.nodes[place].kind)?;
        Ok(Some(place))
    }

    fn node(&self, step: Step) -> Result<Node> {
        check_decimal(step.kind)?;
        let arg_kinds: Vec<Type> = step.args.iter().map(|&place| self.nodes[place].kind).collect();
        let mut node = Node {
            operation: step.op,
            kind: step.kind,
            args: step.args.clone(),
            arg_kinds,
            position: 0,
            digits: step.digits,
            unit: step.unit,
            escape: step.escape,
            members: None,
            constant: None,
        };
        check(&node)?;
        match step.op {
            Operation::Column => node.position = self.position(&step)?,
            Operation::Literal => node.constant = Some(Constant { value: literal(&step)?, fault: false }),
            Operation::In => self.take_members(&mut node)?,
            _ => {}
        }
        if node.constant.is_none() && !node.is_column() && self.all_constant(&node.args) {
            node.constant = Some(fold(&node, &self.slots)?);
        }
        Ok(node)
    }

    fn position(&self, step: &Step) -> Result<usize> {
        let name = step.name.as_deref().unwrap_or_default();
        let position = self.columns[name];
        same_kind(name, step.kind, self.fields[position].kind)?;
        Ok(position)
    }

    /// A list of literals becomes a set that belongs to the node.
    fn take_members(&self, node: &mut Node) -> Result<()> {
        let members = node.args.split_off(1);
        node.arg_kinds.truncate(1);
        if !self.all_constant(&members) {
            return Err(Error::invalid("in takes constants only"));
        }
        node.members = Some(Members::new(members.iter().map(|&place| self.slots[place].scalar(0))));
        Ok(())
    }

    fn all_constant(&self, places: &[usize]) -> bool {
        places.iter().all(|&place| self.nodes[place].constant.is_some())
    }
}

impl Node {
    pub fn is_column(&self) -> bool {
        self.operation == Operation::Column
    }
}

fn same_kind(name: &str, wanted: Type, given: Type) -> Result<()> {
    if wanted == given {
        return Ok(());
    }
    Err(Error::invalid(format!("\"{name}\" is {given}, and the plan takes it for {wanted}")))
}

fn check_decimal(kind: Type) -> Result<()> {
    match kind {
        Type::Decimal(precision, scale)
            if !(1..=38).contains(&precision) || !(0..=precision as i8).contains(&scale) =>
        {
            Err(Error::invalid(format!("{kind} has an impossible precision or scale")))
        }
        _ => Ok(()),
    }
}

/// Whether an operation takes arguments of these types and gives its type.
fn check(node: &Node) -> Result<()> {
    if fits(node) {
        return Ok(());
    }
    let given: Vec<String> = node.arg_kinds.iter().map(Type::to_string).collect();
    let (operation, kind) = (node.operation, node.kind);
    Err(Error::invalid(format!("{operation:?} of ({}) does not give {kind}", given.join(", "))))
}

fn fits(node: &Node) -> bool {
    use Operation::*;
    use Type::{Bool, Decimal, Float64, Int64, Text, Timestamp};
    let args = node.arg_kinds.as_slice();
    let all = |kind: Type| args.iter().all(|&arg| arg == kind);
    match (node.operation, args, node.kind) {
        (Column | Literal, [], _) => true,
        (Cast, [Int64 | Decimal(..)], Float64) | (Cast, [Int64], Decimal(..)) => true,
        (Cast, [Decimal(_, from)], Decimal(_, to)) => from <= &to,
        (Add | Subtract | Multiply | Modulo, [Int64, Int64], Int64) => true,
        (Add | Subtract | Multiply | Divide | Modulo, [Float64, Float64], Float64) => true,
        (Add | Subtract | Modulo, [Decimal(_, left), Decimal(_, right)], Decimal(_, scale)) => {
            scale == *left.max(right)
        }
        (Multiply, [Decimal(_, left), Decimal(_, right)], Decimal(_, scale)) => scale == left + right,
        (Negate | Absolute, [arg], kind) => *arg == kind && matches!(kind, Int64 | Float64 | Decimal(..)),
        (Round, [Float64], Float64) => true,
        (Round, [Int64], Int64) => node.digits < 0,
        (Round, [Decimal(_, from)], Decimal(_, to)) => {
            i32::from(to) == node.digits.max(0) && node.digits < i32::from(*from)
        }
        (Floor | Ceil, [Float64], Float64) => true,
        (Floor | Ceil, [Decimal(..)], Decimal(_, 0)) => true,
        (Ln | Exp | Sqrt, [Float64], Float64) | (Power, [Float64, Float64], Float64) => true,
        (Equal | NotEqual | Less | LessEqual | Greater | GreaterEqual, [left, right], Bool) => {
            left == right || matches!((left, right), (Decimal(..), Decimal(..)))
        }
        (In, [kind, _, ..], Bool) => *kind != Bool && all(*kind),
        (And | Or, [_, ..], Bool) => all(Bool),
        (Not, [Bool], Bool) | (IsNull, [_], Bool) => true,
        (Case, [_, _, _, ..], kind) => {
            args.len() % 2 == 1
                && args.chunks_exact(2).all(|branch| branch[0] == Bool && branch[1] == kind)
                && args.last() == Some(&kind)
        }
        (Coalesce | Least | Greatest, [_, ..], kind) => all(kind),
        (Lower | Upper, [Text], Text) | (Length, [Text], Int64) => true,
        (Substr, [Text, Int64] | [Text, Int64, Int64], Text) => true,
        (StartsWith | Like, [Text, Text], Bool) => true,
        (Extract, [Timestamp], kind) => match node.unit {
            Some(Unit::Epoch) => kind == Float64,
            Some(_) => kind == Int64,
            None => false,
        },
        (DateTrunc, [Timestamp], Timestamp) => node.unit.is_some_and(Unit::truncates),
        _ => false,
    }
}

// Literals

/// Floats and decimals come as text: a JSON number might not keep every digit of them.
fn literal(step: &Step) -> Result<Scalar> {
    let value = step.value.as_ref().unwrap_or(&Value::Null);
    if value.is_null() {
        return Ok(Scalar::Null);
    }
    let scalar = match step.kind {
        Type::Bool => value.as_bool().map(Scalar::Bool),
        Type::Int64 | Type::Timestamp => value.as_i64().map(Scalar::Int),
        Type::Float64 => value.as_str().and_then(finite).map(Scalar::Float),
        Type::Text => value.as_str().map(Scalar::from),
        Type::Decimal(precision, scale) => {
            value.as_str().and_then(|text| unscaled(text, precision, scale)).map(Scalar::Decimal)
        }
    };
    scalar.ok_or_else(|| Error::invalid(format!("a literal is not of type {}", step.kind)))
}

fn finite(text: &str) -> Option<f64> {
    text.parse().ok().filter(|value: &f64| value.is_finite())
}

fn unscaled(text: &str, precision: u8, scale: i8) -> Option<i128> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() != scale as usize {
        return None;
    }
    let value: i128 = format!("{whole}{fraction}").parse().ok()?;
    (value.unsigned_abs() < 10u128.pow(u32::from(precision))).then_some(value)
}
