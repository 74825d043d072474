//! Logic with three values, and the choice between arguments row by row.
//!
//! Every choice (case, coalesce, least, greatest) first says for each row which argument it takes,
//! and then takes it.

use std::cmp::Ordering;

use arrow_buffer::{BooleanBuffer, NullBuffer};

use super::column::{Args, Column, Outcome, Source, Text, Values, bits};
use super::plan::Operation;
use crate::error::Result;
use crate::schema::Type;

/// `and` is false if one is false, `or` true if one is true; else null if one is null.
pub(super) fn logic(args: &Args) -> Outcome {
    let conjunction = args.node.operation == Operation::And;
    let columns = || (0..args.len()).map(|place| args.column(place));
    let trues = columns().map(|column| column.true_bits(args.rows));
    let trues = if conjunction { all(trues) } else { any(trues) };
    if !columns().any(Column::has_nulls) {
        return Outcome::whole(trues, None);
    }
    let falses = columns().map(|column| column.false_bits(args.rows));
    let falses = if conjunction { any(falses) } else { all(falses) };
    let known = NullBuffer::new(&trues | &falses);
    Outcome::whole(trues, Some(known).filter(|known| known.null_count() > 0))
}

fn all(columns: impl Iterator<Item = BooleanBuffer>) -> BooleanBuffer {
    columns.reduce(|left, right| &left & &right).expect("binding wants an argument")
}

fn any(columns: impl Iterator<Item = BooleanBuffer>) -> BooleanBuffer {
    columns.reduce(|left, right| &left | &right).expect("binding wants an argument")
}

pub(super) fn negation(args: &Args) -> Outcome {
    Outcome::whole(args.column(0).false_bits(args.rows), args.nulls())
}

pub(super) fn null_test(args: &Args) -> Outcome {
    Outcome::whole(!&args.column(0).valid_bits(args.rows), None)
}

// Choices

pub(super) fn case(args: &Args) -> Result<Outcome> {
    let default = args.len() - 1;
    let mut choice = vec![default; args.rows];
    // Backwards, so that the first condition that holds has the last word.
    for condition in (0..default).step_by(2).rev() {
        for row in args.column(condition).true_bits(args.rows).set_indices() {
            choice[row] = condition + 1;
        }
    }
    take(args, &choice)
}

pub(super) fn coalesce(args: &Args) -> Result<Outcome> {
    if !args.column(0).has_nulls() {
        return Ok(Outcome { column: args.column(0).clone(), faults: None });
    }
    let last = args.len() - 1;
    let mut choice = vec![last; args.rows];
    for place in (0..last).rev() {
        for row in args.column(place).valid_bits(args.rows).set_indices() {
            choice[row] = place;
        }
    }
    take(args, &choice)
}

/// The least or the greatest of the arguments that are not null.
pub(super) fn extreme(args: &Args) -> Result<Outcome> {
    let choice = match args.node.kind {
        Type::Bool => choose_extreme(args, |place| args.bools(place)),
        Type::Int64 | Type::Timestamp => choose_extreme(args, |place| args.ints(place)),
        Type::Float64 => choose_extreme(args, |place| args.floats(place)),
        Type::Decimal(..) => choose_extreme(args, |place| args.decimals(place)),
        Type::Text => choose_extreme(args, |place| args.texts(place)),
    };
    take(args, &choice)
}

fn choose_extreme<S: Source>(args: &Args, side: impl Fn(usize) -> S) -> Vec<usize>
where
    S::Item: PartialOrd,
{
    let wanted = if args.node.operation == Operation::Least { Ordering::Less } else { Ordering::Greater };
    let sides: Vec<S> = (0..args.len()).map(side).collect();
    let mut choice = vec![0; args.rows];
    for place in 1..args.len() {
        let (column, values) = (args.column(place), sides[place]);
        for (row, best) in choice.iter_mut().enumerate() {
            let better = || values.get(row).partial_cmp(&sides[*best].get(row)) == Some(wanted);
            if column.valid(row) && (!args.column(*best).valid(row) || better()) {
                *best = place;
            }
        }
    }
    choice
}

/// In each row the argument that was chosen for it.
fn take(args: &Args, choice: &[usize]) -> Result<Outcome> {
    let values: Values = match args.node.kind {
        Type::Bool => {
            let sides = sides(args, |place| args.bools(place));
            bits(args.rows, |row| sides[choice[row]].is_some_and(|side| side.get(row))).into()
        }
        Type::Int64 | Type::Timestamp => picked(choice, &sides(args, |place| args.ints(place))).into(),
        Type::Float64 => picked(choice, &sides(args, |place| args.floats(place))).into(),
        Type::Decimal(..) => picked(choice, &sides(args, |place| args.decimals(place))).into(),
        Type::Text => {
            let sides = sides(args, |place| args.texts(place));
            let texts = choice.iter().enumerate().map(|(row, &place)| pick(&sides, place, row));
            Text::collect(args.rows, texts)?.into()
        }
    };
    Ok(Outcome::whole(values, chosen_nulls(args, choice)))
}

/// The arguments by place; the conditions among them are not to be taken.
fn sides<S>(args: &Args, side: impl Fn(usize) -> S) -> Vec<Option<S>> {
    (0..args.len()).map(|place| (!is_condition(args, place)).then(|| side(place))).collect()
}

fn is_condition(args: &Args, place: usize) -> bool {
    args.node.operation == Operation::Case && place.is_multiple_of(2) && place + 1 < args.len()
}

fn picked<S: Source>(choice: &[usize], sides: &[Option<S>]) -> Vec<S::Item>
where
    S::Item: Default,
{
    choice.iter().enumerate().map(|(row, &place)| pick(sides, place, row)).collect()
}

fn pick<S: Source>(sides: &[Option<S>], place: usize, row: usize) -> S::Item
where
    S::Item: Default,
{
    sides[place].map_or_else(S::Item::default, |side| side.get(row))
}

fn chosen_nulls(args: &Args, choice: &[usize]) -> Option<NullBuffer> {
    let case = args.node.operation == Operation::Case;
    let whole = |place: usize| !args.column(place).has_nulls();
    let mut places = (0..args.len()).filter(|place| !is_condition(args, *place));
    // A case can take any of them; the other choices pass over nulls, where one argument is without.
    if if case { places.all(whole) } else { places.any(whole) } {
        return None;
    }
    let valid = bits(args.rows, |row| args.column(choice[row]).valid(row));
    Some(NullBuffer::new(valid)).filter(|nulls| nulls.null_count() > 0)
}
