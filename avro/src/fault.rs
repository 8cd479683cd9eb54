use thiserror::Error;

use super::schema::Unit;
use super::wire::Flaw;

/// Why rows could not be made from a block.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum Fault {
    /// One row cannot be stored. The rows after it still can.
    #[error(transparent)]
    Row(#[from] RowFault),
    /// The bytes are not what the schema says; nothing after this point can be read.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
}

/// A row the database cannot hold as it is.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("row {ordinal}, field {field}: {reason}")]
pub struct RowFault {
    /// The row's position in the block, from 0. Add the block's first row for that in the file.
    pub ordinal: u64,
    pub field: String,
    pub reason: Reason,
}

#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("row {ordinal}, field {field}, at byte {offset} of the decompressed block: {flaw}")]
pub struct Corrupt {
    pub ordinal: u64,
    pub field: String,
    pub offset: usize,
    pub flaw: Flaw,
}

/// What about a value the database cannot hold.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum Reason {
    #[error("text contains a NUL character")]
    Nul,
    #[error("text is not valid UTF-8")]
    Utf8,
    #[error("text has {chars} characters, more than the column's {limit}")]
    TextTooLong { chars: usize, limit: u32 },
    #[error("text is not JSON")]
    NotJson,
    #[error("{bytes} bytes are more than a field may have ({limit})")]
    FieldTooLong { bytes: usize, limit: usize },
    #[error("date {days} days from 1970-01-01 is out of the database's range")]
    DateRange { days: i64 },
    #[error("time of day {value} ({unit:?}) is not within a day")]
    TimeRange { value: i64, unit: Unit },
    #[error("timestamp {value} ({unit:?} from 1970) is out of the database's range")]
    TimestampRange { value: i64, unit: Unit },
    #[error("interval of {months} months and {days} days is out of the database's range")]
    IntervalRange { months: u32, days: u32 },
    #[error("decimal has more than {precision} digits")]
    Precision { precision: u32 },
    #[error("decimal of {bytes} bytes is larger than the limit of {limit}")]
    DecimalTooLong { bytes: usize, limit: usize },
    #[error("big-decimal is not an unscaled value and a scale")]
    BigDecimal,
    #[error("number is out of the column's range")]
    NumberRange,
    #[error("NaN cannot be stored in this column")]
    NotANumber,
    #[error("text is not a UUID")]
    Uuid,
    #[error("null in a column that is NOT NULL")]
    Null,
    #[error("{0}")]
    Unresolvable(Box<str>),
}

/// Why a value was given up, on the way to becoming a [`Fault`].
#[derive(Debug)]
pub(crate) enum Halt {
    Flaw(Flaw),
    Reason(Box<Reason>),
}

impl From<Flaw> for Halt {
    #[inline]
    fn from(flaw: Flaw) -> Self {
        Self::Flaw(flaw)
    }
}

impl From<Reason> for Halt {
    #[cold]
    fn from(reason: Reason) -> Self {
        Self::Reason(Box::new(reason))
    }
}
