//! Which generations become one, so that they stay few, and how.
//!
//! The retention time is cut into eighths. Within the eighth under way four generations of about one size become one
//! of the next size, so that each id is rewritten a few times only; when it is over, what it left becomes one. So
//! there are some ten generations and a few small ones, and an id outlives its retention by an eighth at most.

use std::io::ErrorKind;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Span;
use super::generation::{self, Cursor, Generation, Writer};
use crate::disk::Disk;
use crate::error::{Error, Result};

const WIDTH: usize = 4;
const WIDTH_MAX: usize = 16;
const EIGHTHS: i64 = 8;
/// Ids merged between two looks at whether to stop: some milliseconds.
const STOP_STEPS: usize = 1 << 18;

/// What decides whether neighbours are merged: the eighth of the retention time they end in, and their size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rank {
    pub(super) eighth: i64,
    pub(super) size: u32,
}

impl Rank {
    pub(super) fn of(generation: &Generation, table_ids: usize, retain_us: i64) -> Rank {
        let eighth = generation.span.newest_us.div_euclid((retain_us / EIGHTHS).max(1));
        let tables = generation.ids / table_ids.max(1) as u64;
        Rank { eighth, size: tables.max(1).ilog(WIDTH as u64) }
    }
}

/// The neighbours to merge next, if any; generations from the oldest to the newest.
pub(super) fn choose(ranks: &[Rank]) -> Option<Range<usize>> {
    let same_size = runs(ranks, |one, other| one == other).filter(|run| run.len() >= WIDTH);
    let last = ranks.len();
    let left_over =
        runs(ranks, |one, other| one.eighth == other.eighth).filter(|run| run.len() > 1 && run.end < last);
    // The newest first: they are the smallest, and would pile up behind a large merge.
    let run = same_size.last().or_else(|| left_over.last())?;
    Some(run.start.max(run.end.saturating_sub(WIDTH_MAX))..run.end)
}

fn runs(ranks: &[Rank], same: impl Fn(&Rank, &Rank) -> bool) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    ranks.chunk_by(same).map(move |run| {
        start += run.len();
        start - run.len()..start
    })
}

/// Write one generation in the place of neighbours, from the oldest to the newest; fails when told to stop.
pub(super) fn merge(disk: &dyn Disk, sources: &[Arc<Generation>], stop: &AtomicBool) -> Result<Generation> {
    let span = sources.iter().map(|source| source.span).reduce(Span::join).expect("a merge has sources");
    let ids = sources.iter().map(|source| source.ids).sum();
    generation::write(disk, span, ids, |writer| {
        let mut cursors = sources.iter().map(Generation::cursor).collect::<Result<Vec<_>>>()?;
        while !cursors.is_empty() {
            push_smallest(&mut cursors, writer, STOP_STEPS)?;
            if stop.load(Ordering::Relaxed) {
                return Err(Error::io("could not merge", ErrorKind::Interrupted.into()));
            }
        }
        Ok(())
    })
}

/// Move entries by hash; those of one hash from the oldest cursor to the newest.
fn push_smallest(cursors: &mut Vec<Cursor>, writer: &mut Writer, steps: usize) -> Result<()> {
    for _ in 0..steps {
        let Some(smallest) = (0..cursors.len()).min_by_key(|number| cursors[*number].hash()) else { break };
        let (hash, address) = cursors[smallest].entry();
        writer.push(hash, address)?;
        if !cursors[smallest].advance()? {
            cursors.remove(smallest);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A rank for each (eighth, size).
    fn ranks(ranks: &[(i64, u32)]) -> Vec<Rank> {
        ranks.iter().map(|(eighth, size)| Rank { eighth: *eighth, size: *size }).collect()
    }

    #[test]
    fn four_neighbours_of_one_size_are_merged() {
        assert_eq!(choose(&ranks(&[])), None);
        assert_eq!(choose(&ranks(&[(0, 0); 3])), None);
        assert_eq!(choose(&ranks(&[(0, 0); 4])), Some(0..4));
        assert_eq!(choose(&ranks(&[(0, 1), (0, 0), (0, 0), (0, 0), (0, 0)])), Some(1..5));
        assert_eq!(choose(&ranks(&[(0, 1), (0, 1), (0, 1), (0, 1), (0, 0)])), Some(0..4));
        assert_eq!(choose(&ranks(&[(0, 1), (0, 0), (0, 0), (0, 0)])), None);
    }

    #[test]
    fn what_an_eighth_left_is_merged_when_it_is_over() {
        assert_eq!(choose(&ranks(&[(0, 2), (0, 1), (0, 0)])), None);
        assert_eq!(choose(&ranks(&[(0, 2), (0, 1), (0, 0), (1, 0)])), Some(0..3));
        assert_eq!(choose(&ranks(&[(0, 3), (1, 1), (1, 0), (2, 0), (2, 0)])), Some(1..3));
        assert_eq!(choose(&ranks(&[(0, 3), (1, 1), (2, 0), (3, 0), (4, 0)])), None);
    }

    #[test]
    fn generations_of_different_eighths_are_never_merged() {
        assert_eq!(choose(&ranks(&[(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (5, 0)])), None);
    }

    #[test]
    fn a_merge_has_sixteen_sources_at_most() {
        assert_eq!(choose(&ranks(&[(0, 0); 40])), Some(24..40));
    }

    /// 3,500 tables in a retention time is 40,000 ids a second for 24 hours.
    #[test]
    fn there_are_about_ten_generations_and_an_id_is_rewritten_a_few_times() {
        let (mut sizes, mut rewritten, mut most) = (Vec::<(i64, u64)>::new(), 0, 0);
        for table in 0..10_000 {
            sizes.push((table * 8 / 3500, 1));
            while let Some(chosen) = choose(&ranks_of(&sizes)) {
                let merged =
                    (sizes[chosen.start].0, sizes[chosen.clone()].iter().map(|(_, size)| size).sum());
                rewritten += merged.1;
                sizes.splice(chosen, [merged]);
            }
            sizes.retain(|(eighth, _)| eighth + 1 > (table - 3500) * 8 / 3500);
            most = most.max(sizes.len());
        }
        assert!(most <= 22, "there were {most} generations");
        assert!(rewritten <= 6 * 10_000, "{rewritten} tables were rewritten");
    }

    fn ranks_of(sizes: &[(i64, u64)]) -> Vec<Rank> {
        sizes.iter().map(|(eighth, size)| Rank { eighth: *eighth, size: size.ilog(4) }).collect()
    }
}
