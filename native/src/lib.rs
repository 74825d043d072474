//! The native core of Penstock. Each file is named after the Python module that it serves.

pub mod disk;
pub mod error;
pub mod schema;
pub mod windows;
