//! What every log promises, on every disk.

use std::sync::Arc;

use penstock_native::disk::{Disk, MemoryDisk, Mode, RealDisk};
use penstock_native::error::Error;
use penstock_native::log::{
    Flush, Log, POSITIONS_MAX, Reader, Section, Settings, lock, seek_offset, seek_sequence, seek_time, verify,
};
use penstock_native::schema::{Field, Schema, Type};

use crate::support::*;

#[test]
fn test_what_is_appended_is_read_in_order() {
    on_every_disk(|disk| {
        let (mut log, _) = open(&disk, &small());
        for id in 0..500 {
            append(&mut log, "events", &[id, 1000 + id]);
        }
        log.sync().unwrap();
        let expected: Vec<i64> = (0..500).flat_map(|id| [id, 1000 + id]).collect();
        assert_eq!(read_ids(&disk, None), expected);
        assert!(disk.list("log").unwrap().len() > 4, "several segments were used");
    });
}

#[test]
fn test_what_is_not_synced_is_not_read() {
    on_every_disk(|disk| {
        let (mut log, _) = open(&disk, &small());
        append(&mut log, "events", &[1]);
        log.sync().unwrap();
        append(&mut log, "events", &[2]);
        let mut reader = Reader::open(disk.clone(), None).unwrap();
        let mut found = Vec::new();
        while let Some(commit) = reader.next().unwrap() {
            found.extend(ids(&commit));
        }
        assert_eq!(found, [1]);
        log.sync().unwrap();
        assert_eq!(ids(&reader.next().unwrap().unwrap()), [2]);
        assert!(reader.next().unwrap().is_none());
    });
}

#[test]
fn test_a_new_log_opens_again_with_its_commits_and_the_next_epoch() {
    on_every_disk(|disk| {
        let (mut log, first) = open(&disk, &small());
        assert_eq!((first.last_sequence, first.epoch, first.cut_bytes), (0, 1, 0));
        append(&mut log, "events", &[1, 2]);
        let last = log.last_sequence();
        log.close().unwrap();
        let (mut log, second) = open(&disk, &small());
        assert_eq!((second.last_sequence, second.epoch, second.cut_bytes), (last, 2, 0));
        assert_eq!(append(&mut log, "events", &[3]).base_offsets, [2]);
        log.sync().unwrap();
        assert_eq!(read_ids(&disk, None), [1, 2, 3]);
    });
}

#[test]
fn test_one_commit_spans_topics_and_offsets_are_dense() {
    on_every_disk(|disk| {
        let (mut log, _) = open(&disk, &small());
        let a = log.define("a", &schema()).unwrap();
        let b = log.define("b", &schema()).unwrap();
        let first = log.append(&[section(a, &[1, 2]), section(b, &[3]), section(a, &[4])], NOW_US).unwrap();
        assert_eq!(first.base_offsets, [0, 0, 2]);
        let second = log.append(&[section(b, &[5, 6]), section(a, &[])], NOW_US).unwrap();
        assert_eq!(second.base_offsets, [1, 3]);
        assert_eq!((log.next_offset("a"), log.next_offset("b"), log.next_offset("c")), (3, 3, 0));
        log.sync().unwrap();
        let mut reader = Reader::open(disk, None).unwrap();
        assert!(reader.next().unwrap().unwrap().sections.is_empty(), "the epoch");
        let commit = reader.next().unwrap().unwrap();
        let topics: Vec<&str> = commit.sections.iter().map(|section| &*section.topic).collect();
        assert_eq!(topics, ["a", "b", "a"]);
        assert_eq!(ids(&commit), [1, 2, 3, 4]);
        assert_eq!(reader.catalog().next_offset("a"), 3);
        assert_eq!(reader.next().unwrap().unwrap().sections[1].rows, 0);
    });
}

#[test]
fn test_a_commit_is_read_by_its_address_even_before_it_is_durable() {
    on_every_disk(|disk| {
        let (mut log, _) = open(&disk, &small());
        let addresses: Vec<_> = (0..400).map(|id| append(&mut log, "events", &[id]).address).collect();
        assert!(addresses.is_sorted());
        assert!(addresses.iter().all(|address| address.0 < 1 << 48));
        for (id, address) in addresses.iter().enumerate() {
            assert_eq!(ids(&log.read(*address).unwrap()), [id as i64]);
        }
        log.close().unwrap();
        let (log, _) = open(&disk, &small());
        assert_eq!(ids(&log.read(addresses[7]).unwrap()), [7]);
        assert_eq!(log.read(addresses[7]).unwrap().address, addresses[7]);
    });
}

#[test]
fn test_reading_goes_on_from_every_position() {
    on_every_disk(|disk| {
        let (mut log, _) = open(&disk, &small());
        (0..300).for_each(|id| _ = append(&mut log, "events", &[id]));
        log.sync().unwrap();
        let mut reader = Reader::open(disk.clone(), None).unwrap();
        let mut read = 0;
        loop {
            let mut again = Reader::open(disk.clone(), Some(reader.position())).unwrap();
            let (next, same) = (reader.next().unwrap(), again.next().unwrap());
            let Some(next) = next else { break assert!(same.is_none()) };
            assert_eq!(ids(&next), ids(&same.unwrap()));
            assert_eq!(reader.catalog().topics(), again.catalog().topics());
            assert_eq!(reader.position(), again.position());
            read += ids(&next).len();
        }
        assert_eq!(read, 300);
        assert_eq!(reader.position(), log.end());
        let text = serde_json::to_string(&log.end()).unwrap();
        assert_eq!(serde_json::from_str::<penstock_native::log::Position>(&text).unwrap(), log.end());
    });
}

#[test]
fn test_a_position_of_another_log_is_refused() {
    on_every_disk(|disk| {
        let (mut log, _) = open(&disk, &small());
        append(&mut log, "events", &[1]);
        log.sync().unwrap();
        let mut ahead = log.end();
        ahead.sequence += 1;
        ahead.offset += 64;
        let error = Reader::open(disk.clone(), Some(ahead)).err().unwrap().to_string();
        assert!(error.contains("not where the position says"), "{error}");
        let mut other = log.end();
        other.checksum ^= 1;
        assert!(Reader::open(disk, Some(other)).is_err());
    });
}

#[test]
fn test_the_same_schema_keeps_its_id_and_another_is_a_new_version() {
    on_every_disk(|disk| {
        let (mut log, _) = open(&disk, &small());
        let wider = Schema {
            fields: [schema().fields, vec![Field { name: "more".into(), kind: Type::Bool, optional: true }]]
                .concat(),
        };
        let first = log.define("events", &schema()).unwrap();
        assert_eq!(log.define("events", &schema()).unwrap(), first);
        append(&mut log, "events", &[1]);
        assert_eq!(log.define("events", &schema()).unwrap(), first);
        let second = log.define("events", &wider).unwrap();
        let other = log.define("others", &schema()).unwrap();
        assert_eq!((first, second, other), (0, 1, 2));
        log.note("why", Some("so that there is something to append"));
        log.append(&[], NOW_US).unwrap();
        log.close().unwrap();
        let (mut log, _) = open(&disk, &small());
        assert_eq!(log.catalog().newest_schema("events").unwrap().version, 2);
        assert_eq!(log.define("events", &wider).unwrap(), second);
        assert_eq!(log.define("events", &schema()).unwrap(), 3);
    });
}

#[test]
fn test_notes_come_with_the_next_commit_and_stay() {
    on_every_disk(|disk| {
        let (mut log, _) = open(&disk, &small());
        log.note("position/page", Some("12"));
        log.note("pipeline", Some("{}"));
        assert!(log.catalog().notes().is_empty());
        let noted = log.append(&[], NOW_US).unwrap().sequence;
        assert!(log.append(&[], NOW_US).is_err(), "nothing to append");
        log.note("pipeline", None);
        // Enough for several segments, each of which begins with the notes.
        (0..400).for_each(|id| _ = append(&mut log, "events", &[id]));
        assert_eq!(log.catalog().notes().len(), 1);
        log.close().unwrap();
        let (log, _) = open(&disk, &small());
        assert_eq!(log.catalog().notes()["position/page"], "12");
        let mut reader = Reader::open(disk, None).unwrap();
        while let Some(commit) = reader.next().unwrap() {
            assert_eq!(reader.catalog().notes().is_empty(), commit.sequence < noted);
            assert_eq!(commit.changed, commit.sequence == noted || commit.sequence == noted + 1);
        }
    });
}

#[test]
fn test_a_segment_can_be_sought_by_offset_and_by_time() {
    on_every_disk(|disk| {
        let (mut log, _) = open(&disk, &small());
        let events = log.define("events", &schema()).unwrap();
        let others = log.define("others", &schema()).unwrap();
        for id in 0..300 {
            log.append(&[section(others, &[-id])], NOW_US + 2 * id).unwrap();
            log.append(&[section(events, &[2 * id, 2 * id + 1])], NOW_US + 2 * id + 1).unwrap();
        }
        log.sync().unwrap();
        for offset in 0..600 {
            let position = seek_offset(disk.clone(), "events", offset).unwrap().unwrap();
            let commit = Reader::open(disk.clone(), Some(position)).unwrap().next().unwrap().unwrap();
            assert!(ids(&commit).contains(&(offset as i64)));
            let position = seek_time(disk.clone(), NOW_US + offset as i64).unwrap().unwrap();
            let commit = Reader::open(disk.clone(), Some(position)).unwrap().next().unwrap().unwrap();
            assert!(offset == 0 || commit.time_us == NOW_US + offset as i64);
        }
        assert_eq!(seek_offset(disk.clone(), "events", 600).unwrap(), None);
        assert_eq!(seek_offset(disk.clone(), "nothing", 0).unwrap(), None);
        assert_eq!(seek_time(disk.clone(), NOW_US + 600).unwrap(), None);
    });
}

#[test]
fn test_reading_can_begin_at_every_sequence() {
    on_every_disk(|disk| {
        let (mut log, _) = open(&disk, &small());
        (0..300).for_each(|id| _ = append(&mut log, "events", &[id]));
        log.sync().unwrap();
        for sequence in 1..=log.last_sequence() {
            let from = seek_sequence(disk.clone(), sequence).unwrap();
            let mut reader = Reader::open(disk.clone(), from).unwrap();
            // A segment's first commit is its catalog, which a reader takes in by itself.
            let commit = reader.next().unwrap().unwrap();
            assert!(commit.sequence == sequence || commit.sequence == sequence + 1);
            assert_eq!(
                reader.catalog().next_offset("events"),
                ids(&commit).first().map_or(0, |id| *id as u64 + 1)
            );
        }
    });
}

#[test]
fn test_retention_by_size_removes_whole_old_segments() {
    on_every_disk(|disk| {
        let settings = Settings { retention_bytes: Some(3 * 8192), ..small() };
        let (mut log, _) = open(&disk, &settings);
        (0..600).for_each(|id| _ = append(&mut log, "events", &[id]));
        log.sync().unwrap();
        assert_eq!(log.trim(NOW_US, 1).unwrap().segments, 0, "all is needed");
        let trimmed = log.trim(NOW_US, log.last_sequence()).unwrap();
        assert!(trimmed.segments > 0);
        assert_eq!(trimmed.bytes, trimmed.segments * 8192);
        let found = read_ids(&disk, None);
        assert_eq!(found, (found[0]..600).collect::<Vec<i64>>());
        assert!(found[0] > 0 && found.len() > 50);
        let error = seek_offset(disk.clone(), "events", 0).unwrap_err().to_string();
        assert!(error.contains(&format!("begins at offset {}", found[0])), "{error}");
        log.close().unwrap();
        let (log, recovery) = open(&disk, &settings);
        assert_eq!(log.next_offset("events"), 600);
        assert_eq!(recovery.first_sequence, log.first_sequence());
        assert!(verify(disk).unwrap().sound);
    });
}

#[test]
fn test_retention_by_time_keeps_what_is_younger_and_what_is_needed() {
    on_every_disk(|disk| {
        let settings = Settings { retention_us: Some(100), ..small() };
        let (mut log, _) = open(&disk, &settings);
        let events = log.define("events", &schema()).unwrap();
        let commits: Vec<_> =
            (0..600).map(|id| log.append(&[section(events, &[id])], NOW_US + id).unwrap()).collect();
        log.sync().unwrap();
        let needed = commits[200].sequence;
        log.trim(NOW_US + 600, needed).unwrap();
        assert_eq!(ids(&log.read(commits[200].address).unwrap()), [200]);
        log.trim(NOW_US + 600, u64::MAX).unwrap();
        let found = read_ids(&disk, None);
        assert!(found[0] > 200 && found[0] <= 500, "{}", found[0]);
        let error = log.read(commits[0].address).unwrap_err().to_string();
        assert!(error.contains("is not kept"), "{error}");
        log.trim(NOW_US + 1_000_000, u64::MAX).unwrap();
        assert_eq!(ids(&log.read(commits[599].address).unwrap()), [599], "the segment in use stays");
    });
}

#[test]
fn test_a_reader_that_retention_has_overtaken_is_told_so() {
    on_every_disk(|disk| {
        let settings = Settings { retention_bytes: Some(0), ..small() };
        let (mut log, _) = open(&disk, &settings);
        let mut reader = Reader::open(disk.clone(), None).unwrap();
        (0..600).for_each(|id| _ = append(&mut log, "events", &[id]));
        log.sync().unwrap();
        log.trim(NOW_US, u64::MAX).unwrap();
        let error = loop {
            match reader.next() {
                Ok(commit) => assert!(commit.is_some()),
                Err(error) => break error.to_string(),
            }
        };
        assert!(error.contains("is not kept any more"), "{error}");
    });
}

#[test]
fn test_readers_follow_a_writer_of_another_thread() {
    on_every_disk(|disk| {
        let (mut log, _) = open(&disk, &Settings { background: true, ..small() });
        let follow = |disk: Arc<dyn Disk>| {
            move || {
                let mut reader = Reader::open(disk, None).unwrap();
                let mut found = Vec::new();
                while found.len() < 2000 {
                    match reader.next().unwrap() {
                        Some(commit) => found.extend(ids(&commit)),
                        None => std::thread::yield_now(),
                    }
                }
                found
            }
        };
        let readers = [std::thread::spawn(follow(disk.clone())), std::thread::spawn(follow(disk.clone()))];
        for id in 0..1000 {
            append(&mut log, "events", &[2 * id, 2 * id + 1]);
            if id % 7 == 0 {
                log.sync().unwrap();
            }
        }
        log.sync().unwrap();
        for reader in readers {
            assert_eq!(reader.join().unwrap(), (0..2000).collect::<Vec<i64>>());
        }
    });
}

#[test]
fn test_space_is_filled_piece_after_piece_as_long_as_it_is_wanted() {
    let folder = Folder::new();
    let file = RealDisk::new(folder.path()).open("spare", Mode::Write).unwrap();
    let filled = std::cell::Cell::new(0);
    file.allocate((1 << 20) + 1, &|| Ok(256 << 10).inspect(|_| filled.set(filled.get() + 1))).unwrap();
    assert_eq!(filled.get(), 5);
    assert_eq!(file.read(0, &mut vec![1; 2 << 20]).unwrap(), (1 << 20) + 1);
    let unwanted = || Err(std::io::Error::other("not wanted"));
    assert_eq!(file.allocate(2 << 20, &unwanted).unwrap_err().to_string(), "not wanted");
}

#[test]
fn test_appends_go_on_while_a_sync_runs_elsewhere() {
    on_every_disk(|disk| {
        let (mut log, _) = open(&disk, &small());
        let mut durable = Vec::new();
        for id in 0..300 {
            append(&mut log, "events", &[id]);
            let flush = log.begin_sync();
            let running = std::thread::spawn(move || flush.run());
            append(&mut log, "events", &[1000 + id]);
            log.finish_sync(running.join().unwrap().unwrap()).unwrap();
            durable.push(log.durable());
        }
        assert!(durable.is_sorted());
        assert!(log.durable() < log.last_sequence());
        log.sync().unwrap();
        assert_eq!(log.durable(), log.last_sequence());
        assert_eq!(read_ids(&disk, None).len(), 600);
    });
}

#[test]
fn test_rows_that_do_not_fit_their_schema_are_refused_and_nothing_is_written() {
    on_every_disk(|disk| {
        let (mut log, _) = open(&disk, &small());
        let events = log.define("events", &schema()).unwrap();
        let last = log.last_sequence();
        let narrow = Section { batch: batch(&[1]).project(&[0]).unwrap(), ..section(events, &[1]) };
        let swapped = Section { batch: batch(&[1]).project(&[1, 0]).unwrap(), ..section(events, &[1]) };
        let marked = Section { marks: Some(vec![1, 2]), ..section(events, &[1]) };
        for wrong in [narrow, swapped, marked, section(7, &[1])] {
            let error = log.append(&[section(events, &[1]), wrong], NOW_US).unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }), "{error}");
        }
        let large: Vec<i64> = (0..1000).collect();
        let error = log.append(&[section(events, &large)], NOW_US).unwrap_err();
        assert!(error.to_string().contains("do not fit into a segment"), "{error}");
        assert_eq!((log.last_sequence(), log.next_offset("events")), (last, 0));
        append(&mut log, "events", &[1]);
    });
}

#[test]
fn test_a_new_directory_takes_two_segments_at_most() {
    let folder = Folder::new();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(folder.path()));
    let settings = Settings { segment_bytes: 4 << 20, ..Settings::default() };
    let (mut log, _) = open(&disk, &settings);
    let bytes = || disk.list("log").unwrap().iter().map(|(_, bytes)| bytes).sum::<u64>();
    assert_eq!(bytes(), (4 << 20) + 8192);
    while log.end().offset < 1 << 20 {
        append(&mut log, "events", &(0..1000).collect::<Vec<i64>>());
    }
    log.room(3 << 20).unwrap();
    assert_eq!(bytes(), (8 << 20) + 8192);
}

#[test]
fn test_a_second_writer_is_told_who_the_first_is() {
    let folder = Folder::new();
    let first = lock(&folder.path().join("data")).unwrap();
    match lock(&folder.path().join("data")) {
        Err(Error::Locked { pid, stopped }) => assert_eq!((pid, stopped), (Some(std::process::id()), false)),
        other => panic!("{other:?}"),
    }
    drop(first);
    lock(&folder.path().join("data")).unwrap();
    lock(&folder.path().join("several/folders/deep")).unwrap();
}

#[test]
fn test_a_copy_of_a_directory_is_the_same_log() {
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
    let (mut log, _) = open(&disk, &small());
    (0..300).for_each(|id| _ = append(&mut log, "events", &[id]));
    log.close().unwrap();
    let folder = Folder::new();
    let copy: Arc<dyn Disk> = Arc::new(RealDisk::new(folder.path()));
    for (name, _) in disk.list("log").unwrap() {
        let path = format!("log/{name}");
        let file = disk.open(&path, Mode::Read).unwrap();
        let mut bytes = vec![0; 8192];
        let count = file.read(0, &mut bytes).unwrap();
        copy.open(&path, Mode::Create).unwrap().write(0, &bytes[..count]).unwrap();
    }
    assert_eq!(read_ids(&copy, None), read_ids(&disk, None));
    let (mut log, _) = open(&copy, &small());
    append(&mut log, "events", &[300]);
    log.sync().unwrap();
    assert_eq!(read_ids(&copy, None), (0..301).collect::<Vec<i64>>());
}

#[test]
fn test_equal_calls_give_equal_files() {
    let run = || {
        let disk = MemoryDisk::new();
        let (mut log, _) = Log::open(Arc::new(disk.clone()), small(), NOW_US).unwrap();
        (0..300).for_each(|id| _ = append(&mut log, "events", &[id]));
        log.close().unwrap();
        let files = disk.list("log").unwrap().into_iter();
        files.map(|(name, _)| disk.contents(&format!("log/{name}")).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

#[test]
fn test_settings_can_change_between_starts() {
    on_every_disk(|disk| {
        let mut next = 0;
        for segment_bytes in [8192, 4096, 65536, 8192] {
            let (mut log, _) = open(&disk, &Settings { segment_bytes, ..small() });
            (0..200).for_each(|_| {
                append(&mut log, "events", &[next]);
                next += 1;
            });
            log.close().unwrap();
        }
        assert_eq!(read_ids(&disk, None), (0..800).collect::<Vec<i64>>());
        assert!(verify(disk).unwrap().sound);
    });
}

#[test]
fn test_verify_counts_what_is_there() {
    on_every_disk(|disk| {
        let (mut log, _) = open(&disk, &small());
        let last = (0..300).map(|id| append(&mut log, if id % 3 == 0 { "a" } else { "b" }, &[id, id])).last();
        log.close().unwrap();
        let report = verify(disk).unwrap();
        assert!(report.sound);
        assert_eq!(report.rows.into_iter().collect::<Vec<_>>(), [("a".into(), 200), ("b".into(), 400)]);
        assert_eq!(report.last_sequence, last.unwrap().sequence);
        assert_eq!((report.first_sequence, report.commits), (1, report.last_sequence));
    });
}

#[test]
fn test_a_log_and_its_readers_can_be_used_from_any_thread() {
    fn check<T: Send + Sync>() {}
    check::<Log>();
    check::<Reader>();
    check::<Flush>();
}

/// A log with as many positions as it takes, and how many those are.
fn log_full_of_positions(disk: &Arc<dyn Disk>, settings: &Settings) -> (Log, usize) {
    let (mut log, _) = open(disk, settings);
    append(&mut log, "events", &[1]);
    for number in 0.. {
        let consumer = format!("{number:0>100}");
        log.check_position(&consumer, "events", 1).unwrap();
        if log.check_position_room(&consumer, "events").is_err() {
            return (log, number);
        }
        log.note_position(&consumer, "events", 1);
        if number % 3 == 2 {
            log.append(&[], NOW_US).unwrap();
        }
    }
    unreachable!("the positions have no bound");
}

#[test]
fn test_the_positions_of_consumers_are_bounded_and_leave_segments_their_room() {
    for (segment_bytes, most) in [(8192, 6), (1 << 20, 885), (8 << 20, POSITIONS_MAX)] {
        on_every_disk(|disk| {
            let settings = Settings { segment_bytes, ..small() };
            let (mut log, count) = log_full_of_positions(&disk, &settings);
            assert_eq!(count, most);
            let new = "n".repeat(100);
            let words = log.check_position_room(&new, "events").unwrap_err().to_string();
            assert!(words.contains(&format!("{most} positions")) && words.contains("--forget"), "{words}");
            if log.has_changes() {
                log.append(&[], NOW_US).unwrap();
            }
            // Known ones move, in this segment and in the next ones, beside rows.
            let known = format!("{:0>100}", 0);
            for next in 2..400 {
                log.check_position_room(&known, "events").unwrap();
                log.note_position(&known, "events", 1);
                log.room(1000).unwrap();
                append(&mut log, "events", &[next; 20]);
            }
            // One that is forgotten makes room, already before the commit that says so.
            log.forget_position(&known, "events");
            log.check_position_room(&new, "events").unwrap();
            log.append(&[], NOW_US).unwrap();
            assert_eq!(log.catalog().position(&known, "events"), None);
            log.close().unwrap();
            let (log, _) = open(&disk, &settings);
            assert_eq!(log.catalog().position(&known, "events"), None);
            assert_eq!(log.catalog().position(&format!("{:0>100}", 1), "events"), Some(1));
        });
    }
}
