//! The embedded log, through its public interface: what it promises, and that it keeps it when disks do not.

mod contract;
mod faults;
mod power;
mod rows;
mod speed;
mod support;
mod values;
