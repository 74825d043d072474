//! The embedded log: every event and decision, in one order, on disk before it is answered.
//!
//! ```text
//! log/0000000000000001.segment   header, catalog, commit, commit, …     full
//! log/00000000000004d2.segment   header, catalog, commit, …  zeros      written now
//! log/spare                      zeros                                  the next one's space
//! log/durable                    how far the log is known to be on disk
//! ```
//!
//! A *commit* is what is appended at once: sections of rows, each of one topic, in a frame with a checksum that follows
//! from the one before it. Every frame has the next sequence, including those that begin a segment or a writer's epoch.
//! Space is zeroed before it is used, so that a sync writes data and nothing else, and a full disk shows beforehand.
//!
//! One process writes (`Log`, under `lock`), any number read (`Reader`), and they share nothing but the files.

mod begin;
mod catalog;
mod columns;
mod commit;
mod durable;
mod files;
mod flush;
mod frame;
mod lock;
mod place;
mod reader;
mod recovery;
mod runs;
mod segment;
mod settings;
mod spare;
mod verify;
mod walk;
mod writer;

pub use catalog::{Catalog, StoredSchema, Topic};
pub use commit::{Commit, Section, StoredSection};
pub use flush::{Flush, Flushed};
pub use lock::{Lock, lock};
pub use place::{Address, Position};
pub use reader::{Reader, first_sequence, newest_catalog, seek_offset, seek_sequence, seek_time};
pub use recovery::{End, Witness, end};
pub use runs::Runs;
pub use settings::Settings;
pub use verify::{Damage, Report, verify, verify_beside};
pub use writer::{Committed, Log, POSITIONS_MAX, Recovery, Trimmed};
