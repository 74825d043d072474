//! Where everything lies: a plan compiled into offsets.
//!
//! An event is kept as a record of `stride` 64-bit words: its time, then flags if there are any, then its values.
//!
//!     | time | flags… | column | column (two words) | …
//!
//! Nulls cost nothing where a type has a pattern to spare (decimals, floats, text); integers, timestamps and
//! booleans have a bit among the flags, and so has each filter.

use crate::error::Result;
use crate::schema::Type;

use super::plan::{Aggregate, Read, StorePlan, output_type};

/// How one column's value lies in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// An int64 or timestamp in a word, valid if its bit is set.
    Int {
        word: usize,
        bit: usize,
    },
    Float {
        word: usize,
    },
    /// A decimal of at most 18 digits.
    Narrow {
        word: usize,
    },
    /// A decimal of more than 18 digits, in two words.
    Wide {
        word: usize,
    },
    /// The id of an interned text.
    Text {
        word: usize,
    },
    /// Two bits: valid, value.
    Bool {
        bit: usize,
    },
}

/// A distinct pair of length and delay, shared by all reads over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub length: Option<i64>,
    pub delay: i64,
}

impl Window {
    /// Events after this are not yet in the window at time `t`.
    pub fn newest(&self, t: i64) -> i64 {
        t.saturating_sub(self.delay)
    }

    /// Events up to this have left the window at time `t`.
    pub fn oldest(&self, t: i64) -> Option<i64> {
        self.length.map(|length| self.newest(t).saturating_sub(length))
    }

    fn span(&self) -> i64 {
        self.delay.saturating_add(self.length.unwrap_or(0))
    }
}

/// A read, with its window's index and its output's place.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub aggregate: Aggregate,
    pub column: Option<usize>,
    pub filter: Option<usize>,
    pub window: usize,
    /// Read after the row itself was added.
    pub after: bool,
    pub output: Type,
}

#[derive(Debug)]
pub struct Layout {
    pub stride: usize,
    pub flags: usize,
    pub slots: Vec<Slot>,
    pub types: Vec<Type>,
    pub windows: Vec<Window>,
    pub steps: Vec<Step>,
    /// An event older than the oldest possible query by this much has left every window.
    pub span: i64,
    /// Some window reaches back to the beginning.
    pub endless: bool,
}

impl Layout {
    pub fn new(plan: &StorePlan) -> Result<Layout> {
        plan.check()?;
        let types: Vec<Type> = plan.columns.iter().map(|(_, kind)| *kind).collect();
        let (slots, flags, stride) = place(&types, plan.filters.len());
        let mut windows = Vec::new();
        let steps = plan.reads.iter().map(|read| step(read, &types, &mut windows)).collect::<Result<_>>()?;
        let span = windows.iter().map(Window::span).max().unwrap_or(0);
        let endless = windows.iter().any(|window| window.length.is_none());
        Ok(Layout { stride, flags, slots, types, windows, steps, span, endless })
    }
}

fn place(types: &[Type], filters: usize) -> (Vec<Slot>, usize, usize) {
    let bits: usize = types.iter().map(flag_bits).sum();
    let flags = (filters + bits).div_ceil(64);
    let (mut bit, mut word) = (filters, 1 + flags);
    let mut slots = Vec::with_capacity(types.len());
    for kind in types {
        slots.push(slot(*kind, word, bit));
        bit += flag_bits(kind);
        word += value_words(kind);
    }
    (slots, flags, word)
}

fn flag_bits(kind: &Type) -> usize {
    match kind {
        Type::Int64 | Type::Timestamp => 1,
        Type::Bool => 2,
        Type::Float64 | Type::Text | Type::Decimal(..) => 0,
    }
}

fn value_words(kind: &Type) -> usize {
    match kind {
        Type::Bool => 0,
        Type::Decimal(19.., _) => 2,
        _ => 1,
    }
}

fn slot(kind: Type, word: usize, bit: usize) -> Slot {
    match kind {
        Type::Int64 | Type::Timestamp => Slot::Int { word, bit },
        Type::Float64 => Slot::Float { word },
        Type::Decimal(19.., _) => Slot::Wide { word },
        Type::Decimal(..) => Slot::Narrow { word },
        Type::Text => Slot::Text { word },
        Type::Bool => Slot::Bool { bit },
    }
}

fn step(read: &Read, types: &[Type], windows: &mut Vec<Window>) -> Result<Step> {
    let window = Window { length: read.length_us, delay: read.delay_us };
    let index = windows.iter().position(|known| *known == window).unwrap_or_else(|| {
        windows.push(window);
        windows.len() - 1
    });
    let behind = matches!(read.aggregate, Aggregate::Lag(_) | Aggregate::SinceLast);
    Ok(Step {
        aggregate: read.aggregate,
        column: read.column,
        filter: read.filter,
        window: index,
        after: read.include_current && !behind,
        output: output_type(read.aggregate, read.column.map(|column| types[column]))?,
    })
}
