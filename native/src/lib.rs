//! The native core of Penstock. Each file is named after the Python module that it serves.

pub mod answer;
pub mod conform;
pub mod decode;
pub mod disk;
pub mod error;
pub mod schema;
