//! Expressions as a tree: written into the plan that the core runs, and evaluated here by looking at each value.

use std::collections::BTreeMap;

use serde_json::json;

use crate::schema::Type;

/// One value. Integers, decimals (unscaled) and times are whole numbers.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Whole(i128),
    Float(f64),
    Text(String),
    Bool(bool),
}

/// Values by the name of their field; null is absent.
pub type Row = BTreeMap<String, Value>;

#[derive(Clone, Debug)]
pub enum Expression {
    Column(String, Type),
    Literal(Type, Value),
    Call(&'static str, Type, Vec<Expression>),
}

use Expression::{Call, Column, Literal};

pub fn column(name: &str, kind: Type) -> Expression {
    Column(name.into(), kind)
}

pub fn integer(value: i64) -> Expression {
    Literal(Type::Int64, Value::Whole(value.into()))
}

pub fn text(value: &str) -> Expression {
    Literal(Type::Text, Value::Text(value.into()))
}

pub fn hundredths(value: i64) -> Expression {
    Literal(Type::Decimal(12, 2), Value::Whole(value.into()))
}

pub fn float(value: f64) -> Expression {
    Literal(Type::Float64, Value::Float(value))
}

/// An operation that gives a truth value.
pub fn test(operation: &'static str, arguments: Vec<Expression>) -> Expression {
    Call(operation, Type::Bool, arguments)
}

pub fn call(operation: &'static str, kind: Type, arguments: Vec<Expression>) -> Expression {
    Call(operation, kind, arguments)
}

impl Expression {
    /// As the core reads it: a list of operations, each after its arguments.
    pub fn plan(&self) -> serde_json::Value {
        let mut steps = Vec::new();
        self.write(&mut steps);
        steps.into()
    }

    fn write(&self, steps: &mut Vec<serde_json::Value>) -> usize {
        let step = match self {
            Column(name, kind) => json!({"op": "column", "type": kind, "name": name}),
            Literal(kind, value) => json!({"op": "literal", "type": kind, "value": literal(*kind, value)}),
            Call(operation, kind, arguments) => {
                let places: Vec<usize> = arguments.iter().map(|argument| argument.write(steps)).collect();
                json!({"op": operation, "type": kind, "args": places})
            }
        };
        steps.push(step);
        steps.len() - 1
    }

    pub fn kind(&self) -> Type {
        match self {
            Column(_, kind) | Literal(kind, _) | Call(_, kind, _) => *kind,
        }
    }

    pub fn evaluate(&self, row: &Row) -> Option<Value> {
        let Call(operation, _, arguments) = self else {
            return match self {
                Column(name, _) => row.get(name).cloned(),
                Literal(_, value) => Some(value.clone()),
                Call(..) => unreachable!(),
            };
        };
        let values: Vec<Option<Value>> = arguments.iter().map(|argument| argument.evaluate(row)).collect();
        match *operation {
            "is_null" => return Some(Value::Bool(values[0].is_none())),
            "coalesce" => return values.into_iter().flatten().next(),
            "and" => return three_valued(&values, false),
            "or" => return three_valued(&values, true),
            _ => {}
        }
        let values: Vec<Value> = values.into_iter().collect::<Option<_>>()?;
        Some(match *operation {
            "not" => Value::Bool(values[0] == Value::Bool(false)),
            "equal" => Value::Bool(values[0] == values[1]),
            "greater" => Value::Bool(less(&values[1], &values[0])),
            "less" => Value::Bool(less(&values[0], &values[1])),
            "add" => Value::Whole(whole(&values[0]) + whole(&values[1])),
            "multiply" => Value::Whole(whole(&values[0]) * whole(&values[1])),
            "cast" => Value::Float(whole(&values[0]) as f64),
            "divide" => match (&values[0], &values[1]) {
                (Value::Float(_), Value::Float(divisor)) if *divisor == 0.0 => return None,
                (Value::Float(left), Value::Float(right)) => Value::Float(left / right),
                _ => unreachable!("only floats are divided"),
            },
            other => unreachable!("{other} is not simulated"),
        })
    }
}

/// `and` is decided by the first false one, `or` by the first true one; else null wins.
fn three_valued(values: &[Option<Value>], decides: bool) -> Option<Value> {
    if values.contains(&Some(Value::Bool(decides))) {
        return Some(Value::Bool(decides));
    }
    if values.contains(&None) { None } else { Some(Value::Bool(!decides)) }
}

fn less(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Whole(left), Value::Whole(right)) => left < right,
        (Value::Float(left), Value::Float(right)) => left < right,
        (Value::Text(left), Value::Text(right)) => left < right,
        _ => unreachable!("types are the same"),
    }
}

fn whole(value: &Value) -> i128 {
    match value {
        Value::Whole(whole) => *whole,
        _ => unreachable!("a whole number is wanted"),
    }
}

fn literal(kind: Type, value: &Value) -> serde_json::Value {
    match (kind, value) {
        (Type::Float64, Value::Float(float)) => format!("{float}").into(),
        (Type::Decimal(..), Value::Whole(unscaled)) => decimal_text(*unscaled).into(),
        (_, Value::Whole(whole)) => (*whole as i64).into(),
        (_, Value::Text(text)) => text.as_str().into(),
        (_, Value::Bool(bool)) => (*bool).into(),
        (_, Value::Float(_)) => unreachable!("a float is of type float64"),
    }
}

/// Of hundredths: all decimals here have the scale 2.
pub fn decimal_text(unscaled: i128) -> String {
    let sign = if unscaled < 0 { "-" } else { "" };
    let size = unscaled.unsigned_abs();
    format!("{sign}{}.{:02}", size / 100, size % 100)
}
