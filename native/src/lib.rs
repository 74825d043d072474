//! The native core of Penstock. Each file is named after the Python module that it serves.

pub mod answer;
// Without `not(test)` the test binary would need libpython to link.
#[cfg(all(feature = "python", not(test)))]
mod bindings;
pub mod conform;
pub mod decide;
pub mod decode;
pub mod disk;
pub mod engine;
pub mod error;
pub mod evaluate;
pub mod follower;
pub mod gate;
pub mod ids;
pub mod log;
mod memory;
pub mod plan;
pub mod schema;
#[cfg(test)]
mod simulate;
pub mod snapshot;
mod threads;
pub mod windows;
pub mod witness;
