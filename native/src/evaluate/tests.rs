//! The evaluator alone: its plans by hand, its answers from tables and from other arithmetic.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Decimal128Type, Float64Type, Int64Type};
use arrow_array::{Array, ArrayRef, BooleanArray, Decimal128Array, Float64Array, Int64Array, StringArray};
use serde_json::{Value, json};

use super::{CHUNK, Program};
use crate::schema::{Field, Type};

fn field(name: &str, kind: Type) -> Field {
    Field { name: name.into(), kind, optional: true }
}

fn column(name: &str, kind: Value) -> Value {
    json!({"op": "column", "type": kind, "name": name})
}

fn int(value: i64) -> Value {
    json!({"op": "literal", "type": "int64", "value": value})
}

fn program(plan: Value, fields: &[Field]) -> Program {
    Program::new(&[("value".into(), plan)], fields).unwrap()
}

fn run(plan: Value, fields: &[Field], columns: &[ArrayRef]) -> (ArrayRef, u64) {
    let rows = columns.first().map_or(1, |column| column.len());
    let (mut arrays, faults) = program(plan, fields).evaluate(columns, rows).unwrap();
    (arrays.remove(0), faults)
}

fn ints(array: &ArrayRef) -> Vec<Option<i64>> {
    array.as_primitive::<Int64Type>().iter().collect()
}

fn refused(plan: Value) -> String {
    let fields = [field("i", Type::Int64), field("s", Type::Text)];
    Program::new(&[("value".into(), plan)], &fields).err().expect("the plan is wrong").to_string()
}

const THREE: [Option<bool>; 3] = [Some(true), Some(false), None];

#[test]
fn logic_follows_the_three_valued_tables() {
    let pairs: Vec<_> =
        THREE.iter().flat_map(|&left| THREE.iter().map(move |&right| (left, right))).collect();
    let left = Arc::new(BooleanArray::from_iter(pairs.iter().map(|pair| pair.0))) as ArrayRef;
    let right = Arc::new(BooleanArray::from_iter(pairs.iter().map(|pair| pair.1))) as ArrayRef;
    let fields = [field("l", Type::Bool), field("r", Type::Bool)];
    let (t, f, n) = (Some(true), Some(false), None);
    for (op, expected) in [("and", [t, f, n, f, f, f, n, f, n]), ("or", [t, t, t, t, f, n, t, n, n])] {
        let plan = json!([
            column("l", json!("bool")),
            column("r", json!("bool")),
            {"op": op, "type": "bool", "args": [0, 1]}
        ]);
        let (array, _) = run(plan, &fields, &[left.clone(), right.clone()]);
        assert_eq!(array.as_boolean().iter().collect::<Vec<_>>(), expected, "{op}");
    }
}

fn quotient() -> Value {
    json!([
        column("i", json!("int64")),
        column("j", json!("int64")),
        {"op": "modulo", "type": "int64", "args": [0, 1]}
    ])
}

fn two_ints(left: Vec<Option<i64>>, right: Vec<Option<i64>>) -> ([Field; 2], [ArrayRef; 2]) {
    let arrays = [left, right].map(|values| Arc::new(Int64Array::from(values)) as ArrayRef);
    ([field("i", Type::Int64), field("j", Type::Int64)], arrays)
}

#[test]
fn a_fault_is_null_and_counted_and_a_null_is_no_fault() {
    let (fields, columns) = two_ints(
        vec![Some(7), Some(7), None, Some(i64::MIN), Some(1)],
        vec![Some(4), Some(0), Some(0), Some(-1), None],
    );
    let (array, faults) = run(quotient(), &fields, &columns);
    assert_eq!(ints(&array), [Some(3), None, None, None, None]);
    assert_eq!(faults, 2);
}

/// `case when j <> 0 then i % j else 0 end`, and the same by `and`, `or` and `coalesce`.
#[test]
fn faults_of_branches_not_taken_are_not_counted() {
    let (fields, columns) = two_ints(vec![Some(7), Some(7)], vec![Some(4), Some(0)]);
    let mut steps = quotient().as_array().unwrap().clone();
    steps.push(int(0));
    steps.push(json!({"op": "not_equal", "type": "bool", "args": [1, 3]}));
    steps.push(json!({"op": "equal", "type": "bool", "args": [2, 3]}));
    let faults = |last: Value| {
        let mut steps = steps.clone();
        steps.push(json!({"op": "not", "type": "bool", "args": [4]}));
        steps.push(last);
        run(Value::Array(steps), &fields, &columns).1
    };
    assert_eq!(faults(json!({"op": "case", "type": "int64", "args": [4, 2, 3]})), 0);
    assert_eq!(faults(json!({"op": "case", "type": "int64", "args": [4, 3, 2]})), 1);
    assert_eq!(faults(json!({"op": "and", "type": "bool", "args": [4, 5]})), 0);
    assert_eq!(faults(json!({"op": "and", "type": "bool", "args": [5, 4]})), 1);
    assert_eq!(faults(json!({"op": "or", "type": "bool", "args": [6, 5]})), 0);
    assert_eq!(faults(json!({"op": "coalesce", "type": "int64", "args": [1, 2]})), 0);
    assert_eq!(faults(json!({"op": "coalesce", "type": "int64", "args": [2, 1]})), 1);
}

#[test]
fn an_operation_that_two_expressions_share_faults_once() {
    let (fields, columns) = two_ints(vec![Some(7); 3], vec![Some(0); 3]);
    let plans = [("one".into(), quotient()), ("two".into(), quotient())];
    let program = Program::new(&plans, &fields).unwrap();
    assert_eq!(program.evaluate(&columns, 3).unwrap().1, 3);
    assert_eq!(program.nodes.len(), 3);
}

#[test]
fn a_constant_that_faults_does_so_in_every_row_that_asks_for_it() {
    let plan = json!([int(1), int(0), {"op": "modulo", "type": "int64", "args": [0, 1]}]);
    let (array, faults) = run(plan, &[field("i", Type::Int64)], &[Arc::new(Int64Array::from(vec![1; 5]))]);
    assert_eq!((array.null_count(), faults), (5, 5));
}

#[test]
fn a_plan_reads_the_result_of_an_earlier_one_by_its_name() {
    let double = json!([column("i", json!("int64")), {"op": "add", "type": "int64", "args": [0, 0]}]);
    let again = json!([column("double", json!("int64")), {"op": "add", "type": "int64", "args": [0, 0]}]);
    let fields = [field("s", Type::Text), field("i", Type::Int64)];
    let program =
        Program::new(&[("double".into(), double), ("again".into(), again.clone())], &fields).unwrap();
    assert_eq!(program.columns(), [1]);
    assert_eq!(program.types(), [Type::Int64, Type::Int64]);
    let columns: [ArrayRef; 2] =
        [Arc::new(StringArray::from(vec!["a"])), Arc::new(Int64Array::from(vec![5]))];
    let (arrays, _) = program.evaluate(&columns, 1).unwrap();
    assert_eq!(ints(&arrays[1]), [Some(20)]);
    assert!(Program::new(&[("again".into(), again)], &fields).is_err());
}

#[test]
fn rows_do_not_depend_on_where_chunks_and_slices_begin() {
    let fields = [field("i", Type::Int64), field("s", Type::Text), field("b", Type::Bool)];
    let rows = 2 * CHUNK + 77;
    let number = |row: usize| (!row.is_multiple_of(5)).then_some(row as i64);
    let text = |row: usize| (!row.is_multiple_of(7)).then(|| format!("é{row}"));
    let whole: [ArrayRef; 3] = [
        Arc::new(Int64Array::from_iter((0..rows).map(number))),
        Arc::new(StringArray::from_iter((0..rows).map(text))),
        Arc::new(BooleanArray::from_iter((0..rows).map(|row| (row % 3 != 0).then_some(row % 2 == 0)))),
    ];
    let plans = [
        (
            "length".into(),
            json!([column("s", json!("text")), {"op": "length", "type": "int64", "args": [0]}]),
        ),
        ("upper".into(), json!([column("s", json!("text")), {"op": "upper", "type": "text", "args": [0]}])),
        ("not".into(), json!([column("b", json!("bool")), {"op": "not", "type": "bool", "args": [0]}])),
        ("same".into(), json!([column("s", json!("text"))])),
        (
            "case".into(),
            json!([column("b", json!("bool")), column("i", json!("int64")), int(-1),
                {"op": "case", "type": "int64", "args": [0, 1, 2]}]),
        ),
    ];
    let program = Program::new(&plans, &fields).unwrap();
    let (all, _) = program.evaluate(&whole, rows).unwrap();
    for (start, length) in [(0, 1), (1, 1), (63, 65), (CHUNK - 1, 2), (77, CHUNK + 13), (rows, 0)] {
        let columns: Vec<ArrayRef> = whole.iter().map(|column| column.slice(start, length)).collect();
        let (part, _) = program.evaluate(&columns, length).unwrap();
        for (part, all) in part.iter().zip(&all) {
            assert_eq!(part.as_ref(), all.slice(start, length).as_ref());
        }
    }
}

#[test]
fn a_plan_that_does_not_fit_is_refused_with_the_reason() {
    let add = |kind: &str| json!([int(1), {"op": "literal", "type": "text", "value": "a"}, {"op": "add", "type": kind, "args": [0, 1]}]);
    assert!(refused(add("int64")).contains("Add of (int64, text) does not give int64"));
    assert!(refused(json!([])).contains("it is empty"));
    assert!(refused(json!([{"op": "not", "type": "bool", "args": [0]}])).contains("comes after its use"));
    assert!(refused(json!([column("x", json!("int64"))])).contains("neither a column nor an earlier plan"));
    assert!(refused(json!([column("s", json!("int64"))])).contains("\"s\" is text"));
    assert!(refused(json!([{"op": "shell", "type": "bool"}])).contains("unknown variant"));
    assert!(refused(json!({"op": "literal"})).contains("invalid type"));
    let wide = json!({"decimal": [39, 0]});
    assert!(refused(json!([{"op": "literal", "type": wide, "value": "1"}])).contains("impossible"));
    let decimal = |value: &str| json!([{"op": "literal", "type": {"decimal": [3, 1]}, "value": value}]);
    for value in ["1", "100.0", "x.1", "--1.0", "1.00", ""] {
        assert!(refused(decimal(value)).contains("a literal is not of type"), "{value}");
    }
    let float = json!([{"op": "literal", "type": "float64", "value": "inf"}]);
    assert!(refused(float).contains("a literal is not of type"));
}

#[test]
fn columns_of_another_type_or_length_are_refused() {
    let program = program(json!([column("i", json!("int64"))]), &[field("i", Type::Int64)]);
    let floats = Arc::new(Float64Array::from(vec![1.0])) as ArrayRef;
    let error = program.evaluate(&[floats], 1).unwrap_err().to_string();
    assert_eq!(error, "column \"i\" is int64, and Float64 was given");
    let short = Arc::new(Int64Array::from(vec![1])) as ArrayRef;
    assert_eq!(program.evaluate(&[short], 2).unwrap_err().to_string(), "column \"i\" has 1 rows, not 2");
    assert_eq!(program.evaluate(&[], 0).unwrap_err().to_string(), "0 columns were given, 1 are wanted");
}

#[test]
fn a_decimal_becomes_the_nearest_float() {
    let fields = [field("d", Type::Decimal(38, 25))];
    let values: Vec<i128> = (0..125).flat_map(|bit| [-1, 0, 1].map(|step| (1i128 << bit) + step)).collect();
    let array = Decimal128Array::from(values.clone()).with_precision_and_scale(38, 25).unwrap();
    let plan =
        json!([column("d", json!({"decimal": [38, 25]})), {"op": "cast", "type": "float64", "args": [0]}]);
    let (floats, _) = run(plan, &fields, &[Arc::new(array)]);
    for (value, float) in values.iter().zip(floats.as_primitive::<Float64Type>().values()) {
        assert_eq!(*float, format!("{value}e-25").parse::<f64>().unwrap(), "{value}");
    }
}

#[test]
fn a_decimal_sum_is_exact_where_a_step_of_it_needs_256_bits() {
    let fields = [field("d", Type::Decimal(38, 0)), field("e", Type::Decimal(38, 30))];
    let (large, tiny) = (10i128.pow(37), 10i128.pow(38) - 1);
    let left = Decimal128Array::from(vec![large, 10i128.pow(8), -(10i128.pow(8))]);
    let right = Decimal128Array::from(vec![1, -1, tiny]);
    let left = Arc::new(left.with_precision_and_scale(38, 0).unwrap()) as ArrayRef;
    let right = Arc::new(right.with_precision_and_scale(38, 30).unwrap()) as ArrayRef;
    let plan = json!([
        column("d", json!({"decimal": [38, 0]})),
        column("e", json!({"decimal": [38, 30]})),
        {"op": "add", "type": {"decimal": [38, 30]}, "args": [0, 1]}
    ]);
    let (sums, faults) = run(plan, &fields, &[left, right]);
    let sums: Vec<Option<i128>> = sums.as_primitive::<Decimal128Type>().iter().collect();
    assert_eq!(sums, [None, Some(tiny), Some(-1)]);
    assert_eq!(faults, 1);
}
