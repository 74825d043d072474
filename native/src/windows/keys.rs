//! Keys of rows: one integer as it is, everything else as bytes, each with its hash.

use arrow_array::cast::AsArray;
use arrow_array::types::{Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, StringArray};
use arrow_buffer::NullBuffer;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::error::{Error, Result};
use crate::schema::Type;

const SEED: u64 = 0x70_656e_7374_6f63;

#[derive(Clone, Debug)]
pub enum Key {
    Int(i64),
    Bytes(Box<[u8]>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyRef<'a> {
    Int(i64),
    Bytes(&'a [u8]),
}

impl Key {
    pub fn view(&self) -> KeyRef<'_> {
        match self {
            Key::Int(int) => KeyRef::Int(*int),
            Key::Bytes(bytes) => KeyRef::Bytes(bytes),
        }
    }

    /// The memory that it points to.
    pub fn bytes(&self) -> usize {
        match self {
            Key::Int(_) => 0,
            Key::Bytes(bytes) => allocated(bytes.len()),
        }
    }
}

impl KeyRef<'_> {
    pub fn hash(self) -> u64 {
        match self {
            KeyRef::Int(int) => xxh3_64_with_seed(&int.to_le_bytes(), SEED),
            KeyRef::Bytes(bytes) => xxh3_64_with_seed(bytes, SEED),
        }
    }

    pub fn to_key(self) -> Key {
        match self {
            KeyRef::Int(int) => Key::Int(int),
            KeyRef::Bytes(bytes) => Key::Bytes(bytes.into()),
        }
    }
}

/// What the allocator gives for so few bytes.
pub fn allocated(bytes: usize) -> usize {
    bytes.next_multiple_of(16)
}

/// Whether keys of these types are kept as integers.
pub fn inline(types: &[Type]) -> bool {
    matches!(types, [Type::Int64 | Type::Timestamp])
}

/// The keys of a batch's rows, `None` where a part is null.
pub enum Keys<'a> {
    Ints(&'a [i64], Option<&'a NullBuffer>),
    Texts(&'a StringArray),
    Parts { bytes: Vec<u8>, ends: Vec<usize>, nulls: Vec<bool> },
}

impl<'a> Keys<'a> {
    pub fn new(arrays: &'a [ArrayRef], types: &[Type], rows: usize) -> Result<Keys<'a>> {
        let fits =
            |(array, kind): (&ArrayRef, &Type)| *array.data_type() == kind.arrow() && array.len() == rows;
        if arrays.len() != types.len() || !arrays.iter().zip(types).all(fits) {
            return Err(Error::invalid("the key columns are not those of the state's plan"));
        }
        Ok(match types {
            [Type::Int64] => Keys::Ints(arrays[0].as_primitive::<Int64Type>().values(), arrays[0].nulls()),
            [Type::Timestamp] => {
                Keys::Ints(arrays[0].as_primitive::<TimestampMicrosecondType>().values(), arrays[0].nulls())
            }
            [Type::Text] => Keys::Texts(arrays[0].as_string()),
            _ => Keys::parts(arrays, types, rows),
        })
    }

    fn parts(arrays: &[ArrayRef], types: &[Type], rows: usize) -> Keys<'a> {
        let (mut bytes, mut ends, mut nulls) =
            (Vec::new(), Vec::with_capacity(rows), Vec::with_capacity(rows));
        for row in 0..rows {
            let null = arrays.iter().any(|array| array.is_null(row));
            if !null {
                arrays.iter().zip(types).for_each(|(array, kind)| encode(array, *kind, row, &mut bytes));
            }
            ends.push(bytes.len());
            nulls.push(null);
        }
        Keys::Parts { bytes, ends, nulls }
    }

    #[inline]
    pub fn get(&self, row: usize) -> Option<KeyRef<'_>> {
        match self {
            Keys::Ints(values, nulls) => {
                nulls.is_none_or(|nulls| nulls.is_valid(row)).then(|| KeyRef::Int(values[row]))
            }
            Keys::Texts(texts) => texts.is_valid(row).then(|| KeyRef::Bytes(texts.value(row).as_bytes())),
            Keys::Parts { bytes, ends, nulls } => {
                let start = if row == 0 { 0 } else { ends[row - 1] };
                (!nulls[row]).then(|| KeyRef::Bytes(&bytes[start..ends[row]]))
            }
        }
    }
}

/// Each part has its own end in it, so that no two keys give the same bytes.
fn encode(array: &ArrayRef, kind: Type, row: usize, bytes: &mut Vec<u8>) {
    match kind {
        Type::Bool => bytes.push(array.as_boolean().value(row) as u8),
        Type::Int64 => bytes.extend(array.as_primitive::<Int64Type>().value(row).to_le_bytes()),
        Type::Timestamp => {
            bytes.extend(array.as_primitive::<TimestampMicrosecondType>().value(row).to_le_bytes())
        }
        Type::Float64 => bytes.extend(array.as_primitive::<Float64Type>().value(row).to_le_bytes()),
        Type::Decimal(..) => bytes.extend(array.as_primitive::<Decimal128Type>().value(row).to_le_bytes()),
        Type::Text => {
            let text = array.as_string::<i32>().value(row);
            bytes.extend((text.len() as u32).to_le_bytes());
            bytes.extend(text.as_bytes());
        }
    }
}
