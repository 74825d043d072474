//! Where everything lies: a plan compiled into offsets.
//!
//! An event is kept as a record of `stride` 64-bit words: its time, then flags if there are any, then its values.
//!
//!     | time | flags… | column | column (two words) | …
//!
//! Nulls cost nothing where a type has a pattern to spare (decimals, floats, text); integers, timestamps and
//! booleans have a bit among the flags, and so has each filter.

use std::ops::Range;

use crate::error::Result;
use crate::schema::Type;

use super::plan::{Aggregate, Read, StorePlan, output_type};
use super::quick::{Quick, Reading};
use super::values::write_null;

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

impl Slot {
    pub fn word(self) -> Option<usize> {
        match self {
            Slot::Int { word, .. } | Slot::Float { word } | Slot::Narrow { word } => Some(word),
            Slot::Wide { word } | Slot::Text { word } => Some(word),
            Slot::Bool { .. } => None,
        }
    }

    pub fn bit(self) -> Option<usize> {
        match self {
            Slot::Int { bit, .. } | Slot::Bool { bit } => Some(bit),
            _ => None,
        }
    }
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

    pub fn span(&self) -> i64 {
        self.delay.saturating_add(self.length.unwrap_or(0))
    }
}

/// How a column's sums are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// Integers, and decimals of at most 18 digits.
    Narrow,
    Wide,
    Float,
}

impl Number {
    fn of(kind: Type) -> Option<Number> {
        match kind {
            Type::Int64 | Type::Decimal(..=18, _) => Some(Number::Narrow),
            Type::Decimal(..) => Some(Number::Wide),
            Type::Float64 => Some(Number::Float),
            Type::Bool | Type::Text | Type::Timestamp => None,
        }
    }

    pub fn sum_words(self) -> usize {
        if self == Number::Narrow { 2 } else { 3 }
    }

    pub fn square_words(self) -> usize {
        if self == Number::Wide { 5 } else { 4 }
    }
}

/// What is kept up to date of the events in a window that pass a filter and have a value in a column.
///
/// Words are offsets into a key's words; the others are indices of its objects.
#[derive(Clone, Copy, Debug)]
pub struct Tally {
    pub window: usize,
    pub of: Picked,
    pub family: Family,
    /// How sums are kept; of no meaning where there are none.
    pub number: Number,
    pub count: usize,
    pub sum: Option<usize>,
    pub squares: Option<usize>,
    pub min: Option<usize>,
    pub max: Option<usize>,
    pub unique: Option<usize>,
}

/// Which reads share a tally. Endless ones do only where they need the same of it: a new mean, which begins where the
/// log does, must not be divided by the count of an older read, which knows more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Sliding,
    Counts,
    Sums,
    Squares,
}

impl Family {
    fn of(read: &Read) -> Family {
        match read.aggregate {
            _ if read.length_us.is_some() => Family::Sliding,
            Aggregate::Sum | Aggregate::Mean => Family::Sums,
            Aggregate::Std | Aggregate::Var => Family::Squares,
            _ => Family::Counts,
        }
    }
}

/// Events that pass a filter and have a value in a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Picked {
    pub column: Option<usize>,
    pub filter: Option<usize>,
    pub slot: Option<Slot>,
    pub kind: Type,
}

/// What `past(None)` needs of freed events beyond what its tallies hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    First,
    /// The newest so many.
    Recent(u32),
    Min,
    Max,
}

#[derive(Clone, Copy, Debug)]
pub struct Base {
    pub keep: Keep,
    pub of: Picked,
    pub object: usize,
}

/// What a key's object is when it is new.
#[derive(Clone, Copy, Debug)]
pub enum Blank {
    Extreme,
    Unique,
    UniqueWide,
    First,
    Recent,
    Best,
}

/// A read, with the places of what answers it.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub aggregate: Aggregate,
    pub of: Picked,
    pub window: usize,
    /// Read after the row itself was added.
    pub after: bool,
    pub output: Type,
    /// None where the window's two places, or a look at the events between them, are enough.
    pub tally: Option<usize>,
    pub reading: Reading,
    /// The object that holds what was freed.
    pub base: Option<usize>,
}

#[derive(Debug, Default)]
pub struct Layout {
    /// Words of a record.
    pub stride: usize,
    pub flags: usize,
    pub slots: Vec<Slot>,
    pub types: Vec<Type>,
    /// Whether a record holds texts.
    pub texts: bool,
    pub windows: Vec<Window>,
    /// In order of their windows.
    pub tallies: Vec<Tally>,
    pub tallies_of: Vec<Range<usize>>,
    /// For each window its tallies, if all of them are quick.
    pub quick_of: Vec<Option<Box<[Quick]>>>,
    pub bases: Vec<Base>,
    pub steps: Vec<Step>,
    pub objects: Vec<Blank>,
    /// Words of a key: its time, how many events were freed if that counts, its windows' places, its tallies.
    pub words: usize,
    pub freed: Option<usize>,
    pub cursors: usize,
    /// An event older than the oldest possible query by this much has left every window.
    pub span: i64,
}

/// The word of a key that holds the time at which its windows stand.
pub const TIME: usize = 0;

impl Layout {
    pub fn new(plan: &StorePlan) -> Result<Layout> {
        plan.check()?;
        let types: Vec<Type> = plan.columns.iter().map(|(_, kind)| *kind).collect();
        let (slots, flags, stride) = place(&types, plan.filters.len());
        let texts = types.contains(&Type::Text);
        let mut layout = Layout { stride, flags, slots, types, texts, words: 1, ..Layout::default() };
        layout.place_windows(&plan.reads);
        layout.place_tallies(&plan.reads);
        layout.quick_of = (layout.tallies_of.iter())
            .map(|tallies| layout.tallies[tallies.clone()].iter().map(Quick::of).collect())
            .collect();
        layout.place_bases(&plan.reads);
        layout.steps = plan.reads.iter().map(|read| layout.step(read)).collect::<Result<_>>()?;
        Ok(layout)
    }

    /// Some window reaches back to the beginning.
    pub fn endless(&self) -> bool {
        self.freed.is_some()
    }

    /// A record without any value.
    pub fn null_record(&self) -> Vec<u64> {
        let mut record = vec![0; self.stride];
        self.slots.iter().for_each(|slot| write_null(*slot, &mut record));
        record
    }

    pub fn picked(&self, column: Option<usize>, filter: Option<usize>) -> Picked {
        let (slot, kind) = match column {
            Some(column) => (Some(self.slots[column]), self.types[column]),
            None => (None, Type::Int64),
        };
        Picked { column, filter, slot, kind }
    }

    fn place_windows(&mut self, reads: &[Read]) {
        for read in reads {
            let window = Window { length: read.length_us, delay: read.delay_us };
            if !self.windows.contains(&window) {
                self.windows.push(window);
            }
        }
        self.span = self.windows.iter().map(Window::span).max().unwrap_or(0);
        let endless = self.windows.iter().any(|window| window.length.is_none());
        self.freed = endless.then(|| self.take_words(1));
        self.cursors = self.take_words(self.windows.len());
    }

    fn place_tallies(&mut self, reads: &[Read]) {
        for window in 0..self.windows.len() {
            let start = self.tallies.len();
            for read in reads {
                if self.window(read) == window && tallied(read) {
                    let of = self.picked(read.column, read.filter);
                    let index = self.tally(window, of, Family::of(read));
                    self.widen_tally(index, read.aggregate);
                }
            }
            self.tallies_of.push(start..self.tallies.len());
        }
    }

    fn tally(&mut self, window: usize, of: Picked, family: Family) -> usize {
        let known = self.tally_of(window, of, family);
        known.unwrap_or_else(|| {
            let count = self.take_words(1);
            let (sum, squares, min, max, unique) = (None, None, None, None, None);
            let number = Number::of(of.kind).unwrap_or(Number::Narrow);
            self.tallies.push(Tally { window, of, family, number, count, sum, squares, min, max, unique });
            self.tallies.len() - 1
        })
    }

    fn tally_of(&self, window: usize, of: Picked, family: Family) -> Option<usize> {
        let same = |tally: &Tally| tally.window == window && tally.of == of && tally.family == family;
        self.tallies.iter().position(same)
    }

    fn widen_tally(&mut self, index: usize, aggregate: Aggregate) {
        let mut tally = self.tallies[index];
        let number = Number::of(tally.of.kind);
        if let (Aggregate::Sum | Aggregate::Mean | Aggregate::Var | Aggregate::Std, Some(number)) =
            (aggregate, number)
        {
            tally.sum = tally.sum.or_else(|| Some(self.take_words(number.sum_words())));
        }
        if let (Aggregate::Var | Aggregate::Std, Some(number)) = (aggregate, number) {
            tally.squares = tally.squares.or_else(|| Some(self.take_words(number.square_words())));
        }
        match aggregate {
            Aggregate::Min => tally.min = tally.min.or_else(|| Some(self.take_object(Blank::Extreme))),
            Aggregate::Max => tally.max = tally.max.or_else(|| Some(self.take_object(Blank::Extreme))),
            Aggregate::NUnique => {
                let wide = matches!(tally.of.slot, Some(Slot::Wide { .. }));
                let blank = if wide { Blank::UniqueWide } else { Blank::Unique };
                tally.unique = tally.unique.or_else(|| Some(self.take_object(blank)));
            }
            _ => {}
        }
        self.tallies[index] = tally;
    }

    fn place_bases(&mut self, reads: &[Read]) {
        for read in reads.iter().filter(|read| read.length_us.is_none()) {
            let Some(keep) = kept(read.aggregate) else { continue };
            let of = self.picked(read.column, read.filter);
            match self.bases.iter_mut().find(|base| base.of == of && same_keep(base.keep, keep)) {
                Some(base) => base.keep = deeper(base.keep, keep),
                None => {
                    let object = self.take_object(blank(keep));
                    self.bases.push(Base { keep, of, object });
                }
            }
        }
    }

    fn step(&self, read: &Read) -> Result<Step> {
        let (window, of) = (self.window(read), self.picked(read.column, read.filter));
        let behind = matches!(read.aggregate, Aggregate::Lag(_) | Aggregate::SinceLast);
        let endless = read.length_us.is_none();
        let keep = kept(read.aggregate).filter(|_| endless);
        let tally = self.tally_of(window, of, Family::of(read)).filter(|_| tallied(read));
        let about = tally.map(|tally| &self.tallies[tally]);
        Ok(Step {
            aggregate: read.aggregate,
            of,
            window,
            after: read.include_current && !behind,
            output: output_type(read.aggregate, read.column.map(|column| self.types[column]))?,
            tally,
            reading: Reading::of(self, read.aggregate, window, about),
            base: keep.and_then(|keep| self.base(of, keep)),
        })
    }

    fn base(&self, of: Picked, keep: Keep) -> Option<usize> {
        let base = self.bases.iter().find(|base| base.of == of && same_keep(base.keep, keep));
        base.map(|base| base.object)
    }

    fn window(&self, read: &Read) -> usize {
        let window = Window { length: read.length_us, delay: read.delay_us };
        self.windows.iter().position(|known| *known == window).expect("every read's window was placed")
    }

    fn take_words(&mut self, count: usize) -> usize {
        self.words += count;
        self.words - count
    }

    fn take_object(&mut self, blank: Blank) -> usize {
        self.objects.push(blank);
        self.objects.len() - 1
    }
}

/// Whether a read is answered from a tally.
fn tallied(read: &Read) -> bool {
    match read.aggregate {
        Aggregate::Count => read.column.is_some() || read.filter.is_some(),
        Aggregate::First | Aggregate::Last | Aggregate::Lag(_) | Aggregate::SinceLast => false,
        _ => true,
    }
}

fn kept(aggregate: Aggregate) -> Option<Keep> {
    match aggregate {
        Aggregate::First => Some(Keep::First),
        Aggregate::Last | Aggregate::SinceLast => Some(Keep::Recent(1)),
        Aggregate::Lag(back) => Some(Keep::Recent(back)),
        Aggregate::Min => Some(Keep::Min),
        Aggregate::Max => Some(Keep::Max),
        _ => None,
    }
}

fn blank(keep: Keep) -> Blank {
    match keep {
        Keep::First => Blank::First,
        Keep::Recent(_) => Blank::Recent,
        Keep::Min | Keep::Max => Blank::Best,
    }
}

fn same_keep(a: Keep, b: Keep) -> bool {
    std::mem::discriminant(&a) == std::mem::discriminant(&b)
}

fn deeper(a: Keep, b: Keep) -> Keep {
    match (a, b) {
        (Keep::Recent(a), Keep::Recent(b)) => Keep::Recent(a.max(b)),
        _ => a,
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
