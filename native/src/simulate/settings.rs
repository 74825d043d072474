//! The settings of a run's service, and what an operator changes of them between two starts.

use super::chance::Chance;
use super::controls::{Safeguard, is_off};
use super::pipeline::{Pipeline, SECOND};
use crate::gate;
use crate::ids;
use crate::log;

#[derive(Clone)]
pub(super) struct Settings {
    pub(super) gate: gate::Settings,
    pub(super) log: log::Settings,
    pub(super) ids: ids::Settings,
}

const STATE_BYTES: [usize; 4] = [usize::MAX, usize::MAX, usize::MAX, 6_000];
const COMMIT_BYTES: [usize; 2] = [256, 1024];
const SEGMENT_BYTES: [u64; 3] = [64 << 10, 64 << 10, 96 << 10];
const COMPRESS_ABOVE: [usize; 3] = [64, 1000, usize::MAX];
const MEMORY_IDS: [usize; 3] = [4, 32, 100_000];
const RETENTION_US: i64 = 60 * SECOND;

impl Settings {
    pub(super) fn draw(chance: &mut Chance, pipeline: &Pipeline) -> Settings {
        let gate = gate::Settings {
            state_bytes_max: *chance.pick(&STATE_BYTES),
            commit_bytes: *chance.pick(&COMMIT_BYTES),
            threads: 1,
        };
        let segment_bytes = *chance.pick(&SEGMENT_BYTES);
        let log = log::Settings {
            segment_bytes,
            compress_above: *chance.pick(&COMPRESS_ABOVE),
            retention_us: chance.percent(30).then_some(RETENTION_US),
            retention_bytes: draw_retention(segment_bytes, chance),
            background: false,
            sync: !is_off(Safeguard::Sync),
        };
        let ids = ids::Settings {
            memory_ids: *chance.pick(&MEMORY_IDS),
            retain_us: pipeline.retain_us(),
            background: false,
        };
        Settings { gate, log, ids }
    }

    /// Not the size of segments: what is too large for one is drawn by it.
    pub(super) fn change(&mut self, chance: &mut Chance) -> &'static str {
        match chance.below(6) {
            0 => {
                self.gate.state_bytes_max = *chance.pick(&STATE_BYTES);
                "the state's size"
            }
            1 => {
                self.gate.commit_bytes = *chance.pick(&COMMIT_BYTES);
                "a commit's size"
            }
            2 => {
                self.log.compress_above = *chance.pick(&COMPRESS_ABOVE);
                "what is compressed"
            }
            3 => {
                self.log.retention_us = chance.percent(50).then_some(RETENTION_US);
                "retention by time"
            }
            4 => {
                self.log.retention_bytes = draw_retention(self.log.segment_bytes, chance);
                "retention by size"
            }
            _ => {
                self.ids.memory_ids = *chance.pick(&MEMORY_IDS);
                "how many ids are kept in memory"
            }
        }
    }
}

fn draw_retention(segment_bytes: u64, chance: &mut Chance) -> Option<u64> {
    let segments = *chance.pick(&[1, 1, 2]);
    chance.percent(50).then_some(segments * segment_bytes)
}
