//! Work on several threads, where there is enough of it.

use std::sync::Mutex;

/// Does all of the work, on so many threads (the caller is one of them); the results in the order of the items.
///
/// Whoever is free takes the next item, so that items need not be equally large.
pub fn side_by_side<T: Send, R: Send>(items: Vec<T>, threads: usize, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let workers = threads.min(items.len());
    if workers < 2 {
        return items.into_iter().map(work).collect();
    }
    let mut results: Vec<Option<R>> = Vec::new();
    results.resize_with(items.len(), || None);
    let waiting = Mutex::new(items.into_iter().enumerate());
    let take = || waiting.lock().expect("taking an item does not panic").next();
    let run = || std::iter::from_fn(take).map(|(place, item)| (place, work(item))).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        // Where no thread is to be had, the caller does the rest.
        let spawn = |_| std::thread::Builder::new().spawn_scoped(scope, run).ok();
        let others: Vec<_> = (1..workers).filter_map(spawn).collect();
        let mut done = run();
        for other in others {
            done.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        done.into_iter().for_each(|(place, result)| results[place] = Some(result));
    });
    results.into_iter().map(|result| result.expect("every item was taken")).collect()
}

#[cfg(test)]
mod tests {
    use super::side_by_side;

    #[test]
    fn results_come_in_the_order_of_the_items_on_any_number_of_threads() {
        for (items, threads) in [(0, 3), (1, 3), (2, 1), (100, 1), (100, 2), (100, 7)] {
            let squares = side_by_side((0..items).collect(), threads, |item: u64| item * item);
            assert_eq!(squares, (0..items).map(|item| item * item).collect::<Vec<_>>());
        }
    }

    #[test]
    #[should_panic(expected = "no such thing")]
    fn a_panic_in_any_thread_reaches_the_caller() {
        side_by_side((0..8).collect(), 2, |item: u64| assert_ne!(item, 5, "no such thing"));
    }
}
