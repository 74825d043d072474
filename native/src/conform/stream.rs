//! Arrow IPC streams out of bytes that nobody vouches for.
//!
//!     FF FF FF FF | length of the metadata | metadata | body        a message: schema, dictionary or record batch
//!     FF FF FF FF | 0                                               the end
//!
//! Every length in a message is checked against the bytes that are there before anything is allocated by it: the
//! reader below trusts them, and asserts where it does not.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow_array::RecordBatch;
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::StreamWriter;
use arrow_ipc::{Message, MessageHeader, RecordBatch as BatchMessage, root_as_message};

use crate::error::{Error, Result};

/// Read a whole stream, which must end with its end marker and have nothing behind it.
pub fn read_ipc(body: &[u8]) -> Result<Vec<RecordBatch>> {
    check_messages(body)?;
    // What is left to go wrong is within a message (types that contradict each other), where the reader panics.
    let batches = catch_unwind(AssertUnwindSafe(|| {
        StreamReader::try_new(Cursor::new(body), None)?.collect::<std::result::Result<Vec<_>, _>>()
    }));
    match batches {
        Ok(Ok(batches)) => Ok(batches),
        Ok(Err(error)) => Err(broken(&error.to_string())),
        Err(_) => Err(broken("its messages contradict each other")),
    }
}

/// A batch as a whole stream: what models are sent.
pub fn write_ipc(batch: &RecordBatch) -> Result<Vec<u8>> {
    let written = StreamWriter::try_new(Vec::new(), batch.schema_ref()).and_then(|mut writer| {
        writer.write(batch)?;
        writer.into_inner()
    });
    written.map_err(|error| Error::invalid(format!("could not write an Arrow IPC stream: {error}")))
}

fn broken(what: &str) -> Error {
    Error::invalid(format!("the body is not a whole Arrow IPC stream: {what}"))
}

fn check_messages(mut rest: &[u8]) -> Result<()> {
    loop {
        let metadata = split_metadata(&mut rest)?;
        if metadata.is_empty() {
            return if rest.is_empty() { Ok(()) } else { Err(broken("bytes follow its end marker")) };
        }
        let message = root_as_message(metadata).map_err(|_| broken("a message's metadata cannot be read"))?;
        let length = usize::try_from(message.bodyLength()).ok().filter(|length| *length <= rest.len());
        let length = length.ok_or_else(|| broken("it ends within a message"))?;
        check_message(&message, length)?;
        rest = &rest[length..];
    }
}

/// Cut the next message's metadata off; nothing of it at the end marker.
fn split_metadata<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8]> {
    let cut = |bytes: &'a [u8], length: usize| {
        bytes.split_at_checked(length).ok_or_else(|| broken("it has no end marker"))
    };
    let (marker, after) = cut(rest, 4)?;
    if marker != [0xff; 4] {
        return Err(broken("a message does not begin with FF FF FF FF"));
    }
    let (length, after) = cut(after, 4)?;
    let length = u32::from_le_bytes(length.try_into().expect("four bytes"));
    let (metadata, after) = cut(after, length as usize)?;
    *rest = after;
    Ok(metadata)
}

fn check_message(message: &Message, body_length: usize) -> Result<()> {
    let batch = match message.header_type() {
        MessageHeader::Schema => return Ok(()),
        MessageHeader::RecordBatch => message.header_as_record_batch(),
        MessageHeader::DictionaryBatch => message.header_as_dictionary_batch().and_then(|batch| batch.data()),
        _ => None,
    };
    check_batch(batch.ok_or_else(|| broken("a message is of a kind that streams do not have"))?, body_length)
}

fn check_batch(batch: BatchMessage, body_length: usize) -> Result<()> {
    if batch.compression().is_some() {
        return Err(Error::invalid_with("the Arrow IPC stream is compressed", "send it without compression"));
    }
    // A row takes a bit at least, but for columns of nothing but nulls, which no schema of ours consists of.
    let rows_max = body_length as i64 * 8;
    let lengths = batch.nodes().into_iter().flatten().map(|node| node.length());
    if !lengths.chain([batch.length()]).all(|length| (0..=rows_max).contains(&length)) {
        return Err(broken("a batch has more rows than its bytes can hold"));
    }
    let within = |offset: i64, length: i64| {
        offset >= 0 && length >= 0 && offset.checked_add(length).is_some_and(|end| end <= body_length as i64)
    };
    if !batch.buffers().into_iter().flatten().all(|buffer| within(buffer.offset(), buffer.length())) {
        return Err(broken("a batch's columns lie outside its bytes"));
    }
    Ok(())
}
