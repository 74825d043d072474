//! What a store is asked to remember and to answer: its columns, its filters and its reads.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::schema::Type;

/// In JSON: `"count"`, `"n_unique"`, `{"lag": 1}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregate {
    Count,
    Sum,
    Mean,
    Min,
    Max,
    Std,
    Var,
    NUnique,
    First,
    Last,
    /// The value so many events back; 1 is the event before the current one.
    Lag(u32),
    /// Seconds since the event before the current one.
    SinceLast,
}

/// One aggregate over one sliding window of an entity's events.
///
/// At a row of effective time t it sees the events of its key with time in (t − delay − length, t − delay],
/// earlier in the order, and the row itself if `include_current` and there is no delay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Read {
    pub aggregate: Aggregate,
    /// Index into `StorePlan::columns`.
    pub column: Option<usize>,
    /// Index into `StorePlan::filters`.
    pub filter: Option<usize>,
    /// `None` is everything so far.
    pub length_us: Option<i64>,
    pub delay_us: i64,
    pub include_current: bool,
}

/// What one store keeps of each event, and every distinct read that any topic makes of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StorePlan {
    pub key: Vec<Type>,
    pub columns: Vec<(String, Type)>,
    /// The filters' texts. Only their identity counts here; their truth comes with each pass.
    pub filters: Vec<String>,
    pub reads: Vec<Read>,
}

impl StorePlan {
    /// The delay of reads that reach back to the beginning. Their store holds no others, so that what it frees is
    /// behind all of them.
    pub fn endless_delay(&self) -> Option<i64> {
        self.reads.iter().find(|read| read.length_us.is_none()).map(|read| read.delay_us)
    }

    pub fn check(&self) -> Result<()> {
        if self.key.is_empty() {
            return Err(Error::invalid("a keyed state needs at least one key column"));
        }
        self.reads.iter().try_for_each(|read| self.check_read(read))
    }

    fn check_read(&self, read: &Read) -> Result<()> {
        if read.length_us.is_some_and(|length| length <= 0) {
            return Err(Error::invalid("a window's length must be more than zero"));
        }
        if read.delay_us < 0 {
            return Err(Error::invalid("a window's delay must not be negative"));
        }
        if read.filter.is_some_and(|filter| filter >= self.filters.len()) {
            return Err(Error::invalid("a read names a filter that its plan does not have"));
        }
        self.output_type(read).map(|_| ())
    }

    /// The type of a read's values.
    pub fn output_type(&self, read: &Read) -> Result<Type> {
        let column = match read.column {
            None => None,
            Some(index) => Some(self.column(index)?),
        };
        output_type(read.aggregate, column)
    }

    fn column(&self, index: usize) -> Result<Type> {
        let column = self.columns.get(index);
        column
            .map(|(_, kind)| *kind)
            .ok_or_else(|| Error::invalid("a read names a column that its plan does not have"))
    }
}

/// The type of an aggregate's values over a column of the given type.
pub fn output_type(aggregate: Aggregate, column: Option<Type>) -> Result<Type> {
    use Aggregate::*;
    match (aggregate, column) {
        (Count, _) => Ok(Type::Int64),
        (SinceLast, None) => Ok(Type::Float64),
        (SinceLast, Some(_)) => Err(Error::invalid("since_last takes no column")),
        (Lag(0), _) => Err(Error::invalid_with("lag(0) is the event itself", "lag counts from 1")),
        (_, None) => Err(Error::invalid(format!("{aggregate:?} needs a column").to_lowercase())),
        (NUnique, _) => Ok(Type::Int64),
        (Min | Max | First | Last | Lag(_), Some(kind)) => Ok(kind),
        (Sum, Some(Type::Int64)) => Ok(Type::Int64),
        (Sum, Some(Type::Float64)) => Ok(Type::Float64),
        (Sum, Some(Type::Decimal(_, scale))) => Ok(Type::Decimal(38, scale)),
        (Mean | Std | Var, Some(Type::Int64 | Type::Float64 | Type::Decimal(..))) => Ok(Type::Float64),
        (Sum | Mean | Std | Var, Some(kind)) => {
            Err(Error::invalid(format!("{aggregate:?} needs a number, not {kind}").to_lowercase()))
        }
    }
}
