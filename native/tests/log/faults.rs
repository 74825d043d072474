//! Damage to the files, at every byte: what was acknowledged is found, or its loss is told with the place.

use std::io::ErrorKind;
use std::sync::Arc;

use penstock_native::disk::{Call, Crash, Disk, MemoryDisk};
use penstock_native::error::{Error, Result};
use penstock_native::log::{Log, Reader, Settings, verify};

use crate::support::*;

/// Three segments of 4 KiB, so that every byte can have its turn.
fn tiny() -> Settings {
    Settings { segment_bytes: 4096, ..small() }
}

fn shared(disk: &MemoryDisk) -> Arc<dyn Disk> {
    Arc::new(disk.clone())
}

fn copy(disk: &MemoryDisk) -> MemoryDisk {
    disk.crash(0, Crash::KeepAll)
}

fn segments(disk: &MemoryDisk) -> Vec<String> {
    let names = disk.list("log").unwrap().into_iter().map(|(name, _)| format!("log/{name}"));
    names.filter(|name| name.ends_with(".segment")).collect()
}

/// Every id was acknowledged; the process ended with or without closing the log.
fn acknowledged_log(last: i64, close: bool) -> MemoryDisk {
    let disk = MemoryDisk::new();
    let (mut log, _) = open(&shared(&disk), &tiny());
    for id in 0..last {
        append(&mut log, "events", &[id]);
        log.sync().unwrap();
    }
    if close {
        log.close().unwrap();
    }
    disk
}

/// What a reader and an opened log make of the disk: all ids, or an error that names the file and the place.
fn check_all_or_refused(disk: &MemoryDisk, expected: i64, file: &str) -> &'static str {
    let expected: Vec<i64> = (0..expected).collect();
    let (before, refusal) = try_read_ids(&shared(disk), None);
    assert!(expected.starts_with(&before));
    let report = verify(shared(disk)).unwrap();
    let rows: u64 = report.rows.values().sum();
    let opened = Log::open(shared(disk), tiny(), NOW_US);
    let opens = opened.is_ok();
    if let Err(error) = opened {
        check_place(&error.to_string(), file);
        assert!(!report.sound, "{error}");
    }
    let (found, error) = try_read_ids(&shared(disk), None);
    match &error {
        Some(error) => {
            check_place(error, file);
            assert!(!report.sound, "{error}");
            assert!(expected.starts_with(&found));
            "refused"
        }
        None if opens => {
            assert!(refusal.is_none());
            assert_eq!(found, expected, "missing without a word");
            assert_eq!(rows, expected.len() as u64);
            "harmless"
        }
        // The reader at rest came to an end that the opened log knows to be no end.
        None => "refused",
    }
}

fn check_place(error: &str, file: &str) {
    let near = segments_of_error(error);
    assert!(error.contains(file) || near, "{error}");
    assert!(error.contains("byte") || error.contains("format version"), "{error}");
}

/// Damage at a segment's end may show as one at the beginning of the next.
fn segments_of_error(error: &str) -> bool {
    error.contains("log/") && error.contains(".segment")
}

#[test]
fn test_every_torn_write_of_an_unacknowledged_commit_is_cut_off() {
    let disk = acknowledged_log(10, false);
    let acknowledged = segments(&disk).pop().unwrap();
    let (mut log, _) = open(&shared(&disk), &tiny());
    let last = append(&mut log, "events", &[10, 11, 12]);
    let bytes = disk.contents(&acknowledged).unwrap();
    let start = last.address.offset() as usize;
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let padded = end.next_multiple_of(8);
    assert!(end > start + 52);
    for length in start..=padded {
        let zeroed = [&bytes[..length], &vec![0; bytes.len() - length]].concat();
        for (torn, whole) in [(&bytes[..length], length >= padded), (&zeroed[..], length >= end)] {
            let disk = copy(&disk);
            disk.put(&acknowledged, torn);
            let (mut log, recovery) = open(&shared(&disk), &tiny());
            let mut expected: Vec<i64> = (0..if whole { 13 } else { 10 }).collect();
            assert_eq!(read_ids(&shared(&disk), None), expected, "cut at byte {length}");
            assert!(recovery.cut_bytes <= (length - start) as u64);
            assert_eq!(append(&mut log, "events", &[99]).base_offsets, [expected.len() as u64]);
            log.sync().unwrap();
            expected.push(99);
            assert_eq!(read_ids(&shared(&disk), None), expected);
            assert_eq!(disk.contents(&acknowledged).unwrap().len(), bytes.len());
        }
    }
}

#[test]
fn test_every_cut_into_an_acknowledged_commit_is_refused_with_the_place() {
    for close in [false, true] {
        let disk = acknowledged_log(10, close);
        let file = segments(&disk).pop().unwrap();
        let bytes = disk.contents(&file).unwrap();
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        for length in 0..end {
            let zeroed = [&bytes[..length], &vec![0; bytes.len() - length]].concat();
            for cut in [&bytes[..length], &zeroed[..]] {
                let disk = copy(&disk);
                disk.put(&file, cut);
                let error = Log::open(shared(&disk), tiny(), NOW_US).err().unwrap();
                let Error::Damaged { file: named, offset, what } = &error else { panic!("{error}") };
                assert_eq!(named, &file);
                // A commit may end with zeros, which a cut there does not change.
                assert!(
                    *offset <= length.max(64) as u64 + 24 && what.contains("penstock log verify"),
                    "{error}"
                );
                let (found, refused) = try_read_ids(&shared(&disk), None);
                assert!(refused.is_some() && found.len() < 10, "cut at byte {length}");
                assert!(!verify(shared(&disk)).unwrap().sound);
            }
        }
    }
}

#[test]
fn test_every_flipped_byte_is_harmless_or_refused_with_the_place() {
    for close in [false, true] {
        let disk = acknowledged_log(75, close);
        assert_eq!(segments(&disk).len(), 3);
        for file in segments(&disk) {
            let bytes = disk.contents(&file).unwrap();
            let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
            let mut refused = 0;
            for at in 0..bytes.len() {
                let disk = copy(&disk);
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << (at % 8);
                disk.put(&file, &flipped);
                let outcome = check_all_or_refused(&disk, 75, &file);
                // The last commit may end with zeros.
                if at < used || at >= used + 24 {
                    assert_eq!(outcome == "refused", at < used, "byte {at} of {used} in {file}");
                }
                refused += usize::from(outcome == "refused");
            }
            assert!(refused > 1000, "the bytes were in use");
        }
    }
}

#[test]
fn test_a_flipped_byte_in_the_two_slot_file_changes_nothing() {
    for close in [false, true] {
        let disk = acknowledged_log(20, close);
        let bytes = disk.contents("log/durable").unwrap();
        for at in 0..bytes.len() {
            let disk = copy(&disk);
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            disk.put("log/durable", &flipped);
            let at_rest = read_ids(&shared(&disk), None);
            assert!(
                at_rest.len() >= if close { 20 } else { 19 },
                "only the very last commit rests on one slot"
            );
            drop(open(&shared(&disk), &tiny()));
            assert_eq!(read_ids(&shared(&disk), None), (0..20).collect::<Vec<i64>>());
        }
    }
}

#[test]
fn test_without_the_two_slot_file_the_commits_themselves_tell_rot_from_a_torn_tail() {
    let disk = acknowledged_log(20, true);
    let file = segments(&disk).pop().unwrap();
    let bytes = disk.contents(&file).unwrap();
    let (log, _) = open(&shared(&copy(&disk)), &tiny());
    let mut refused = 0;
    for at in (64..log.end().offset as usize).step_by(8) {
        let disk = copy(&disk);
        let mut flipped = bytes.clone();
        flipped[at] ^= 0xff;
        disk.put(&file, &flipped);
        disk.remove("log/durable").unwrap();
        match Log::open(shared(&disk), tiny(), NOW_US) {
            Err(_) => refused += 1,
            // Nothing that was written later says that the last commit was durable.
            Ok(_) => assert!(read_ids(&shared(&disk), None).len() >= 19),
        }
    }
    assert!(refused > 100);
    // The same with a reader and with verify: they find all that is provably there.
    disk.remove("log/durable").unwrap();
    assert_eq!(read_ids(&shared(&disk), None).len(), 19);
    drop(open(&shared(&disk), &tiny()));
    assert_eq!(read_ids(&shared(&disk), None).len(), 20);
}

#[test]
fn test_stale_bytes_never_look_valid() {
    let disk = acknowledged_log(75, true);
    let files = segments(&disk);
    let last = disk.contents(&files[2]).unwrap();
    // The next writer's first frame would begin where the last one ended.
    let end = open(&shared(&copy(&disk)), &tiny()).0.end().offset as usize;
    for (name, from) in [(0, 64), (1, 64), (2, 64)] {
        let stale = disk.contents(&files[name]).unwrap();
        for start in (from..stale.len()).step_by(8) {
            let disk = copy(&disk);
            let count = (stale.len() - start).min(last.len() - end);
            let mut bytes = last.clone();
            bytes[end..end + count].copy_from_slice(&stale[start..start + count]);
            disk.put(&files[2], &bytes);
            assert_eq!(read_ids(&shared(&disk), None), (0..75).collect::<Vec<i64>>());
            let (log, _) = open(&shared(&disk), &tiny());
            assert_eq!(log.next_offset("events"), 75);
            log.close().unwrap();
            assert_eq!(read_ids(&shared(&disk), None), (0..75).collect::<Vec<i64>>());
            assert!(verify(shared(&disk)).unwrap().sound);
        }
    }
}

#[test]
fn test_verify_goes_on_behind_damage_and_lists_all_of_it() {
    let disk = acknowledged_log(75, true);
    let files = segments(&disk);
    let (log, _) = open(&shared(&copy(&disk)), &tiny());
    drop(log);
    for file in &files {
        let mut bytes = disk.contents(file).unwrap();
        bytes[1500] ^= 1;
        disk.put(file, &bytes);
    }
    let report = verify(shared(&disk)).unwrap();
    assert!(!report.sound);
    assert_eq!(report.damages.iter().map(|damage| damage.file.clone()).collect::<Vec<_>>(), files);
    assert!(report.damages.iter().all(|damage| (1300..=1500).contains(&damage.offset)), "{report:?}");
    assert_eq!(report.rows["events"], 72, "one commit in each segment");
    let text = serde_json::to_string(&report).unwrap();
    assert!(text.starts_with("{\"sound\":false"), "{text}");
}

#[test]
fn test_missing_and_foreign_files_are_told_apart() {
    let refusal = |spoil: &dyn Fn(&MemoryDisk, &[String])| {
        let disk = acknowledged_log(75, true);
        spoil(&disk, &segments(&disk));
        let error = Log::open(shared(&disk), tiny(), NOW_US).err().unwrap().to_string();
        assert!(!verify(shared(&disk)).is_ok_and(|report| report.sound), "{error}");
        error
    };
    let error = refusal(&|disk, files| disk.remove(&files[1]).unwrap());
    assert!(
        error.contains("0001.segment is damaged") && error.contains("the segment after it is missing"),
        "{error}"
    );
    let error = refusal(&|disk, files| disk.remove(&files[2]).unwrap());
    assert!(error.contains("was durable (as all up to 79 were), but it is missing from here on"), "{error}");
    let error = refusal(&|disk, files| files.iter().for_each(|file| disk.remove(file).unwrap()));
    assert!(error.contains("but there is no segment"), "{error}");
    let error = refusal(&|disk, files| disk.put(&files[2], &[7; 4096]));
    assert!(error.contains("does not begin as a segment of a log does"), "{error}");
    let error = refusal(&|disk, files| disk.put(&files[2], &[]));
    assert!(error.contains("ends within its header"), "{error}");
    let error = refusal(&|disk, files| disk.put(&files[2], &disk.contents(&files[1]).unwrap()));
    assert!(error.contains("it was written as log/"), "{error}");
    let error = refusal(&|disk, _| disk.put("log/mine.segment", b"my notes"));
    assert!(error.contains("log/mine.segment is not a segment of this log"), "{error}");
    let error = refusal(&|disk, files| {
        let mut bytes = disk.contents(&files[2]).unwrap();
        bytes[8] = 9;
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..64]);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        disk.put(&files[2], &bytes);
    });
    assert!(error.contains("format version 9, this release reads version 1"), "{error}");
}

#[test]
fn test_a_segment_of_another_log_is_refused() {
    let disk = acknowledged_log(75, true);
    let other = MemoryDisk::new();
    let (mut log, _) = Log::open(shared(&other), tiny(), NOW_US + 1).unwrap();
    for id in 0..75 {
        append(&mut log, "events", &[id]);
    }
    log.close().unwrap();
    let file = segments(&disk)[1].clone();
    assert_eq!(segments(&other)[1], file, "the two logs look alike");
    disk.put(&file, &other.contents(&file).unwrap());
    let (_, error) = try_read_ids(&shared(&disk), None);
    assert!(error.unwrap().contains("does not follow the segment before it"));
    assert!(!verify(shared(&disk)).unwrap().sound);
    let disk = acknowledged_log(75, true);
    disk.put("log/durable", &other.contents("log/durable").unwrap());
    let error = Log::open(shared(&disk), tiny(), NOW_US).err().unwrap().to_string();
    assert!(error.contains("log/durable is of another log"), "{error}");
}

#[test]
fn test_other_files_in_the_folder_do_not_matter() {
    let disk = acknowledged_log(20, true);
    disk.put("log/README", b"hands off");
    disk.put("log/.nfs0001.segment", b"being removed");
    drop(open(&shared(&disk), &tiny()));
    assert_eq!(read_ids(&shared(&disk), None).len(), 20);
}

#[test]
fn test_after_a_failed_write_or_sync_every_call_is_an_error() {
    for call in [Call::Write, Call::Sync] {
        let disk = MemoryDisk::new();
        let (mut log, _) = open(&shared(&disk), &tiny());
        let schema_id = log.define("events", &schema()).unwrap();
        append(&mut log, "events", &[1]);
        log.sync().unwrap();
        let address = append(&mut log, "events", &[2]).address;
        disk.fail(call, 1, ErrorKind::Other);
        let failed = match call {
            Call::Write => log.append(&[section(schema_id, &[3])], NOW_US).map(|_| ()),
            _ => log.sync(),
        };
        assert!(failed.is_err());
        assert!(log.append(&[section(schema_id, &[4])], NOW_US).is_err());
        assert!(log.sync().is_err());
        assert!(log.begin_sync().run().is_err());
        assert!(log.room(1).is_err());
        assert!(log.read(address).is_err());
        assert!(log.trim(NOW_US, 0).is_err());
        assert!(log.define("others", &schema()).is_err());
        assert!(log.close().is_err());
        // What the failed sync was for is not on the disk, whatever the system's memory shows.
        let disk = disk.crash(0, Crash::KeepAll);
        let (log, _) = open(&shared(&disk), &tiny());
        assert_eq!(log.next_offset("events"), if call == Call::Sync { 1 } else { 2 });
    }
}

#[test]
fn test_what_a_failed_sync_left_in_memory_is_on_disk_before_it_counts() {
    let disk = MemoryDisk::new();
    let (mut log, _) = open(&shared(&disk), &tiny());
    append(&mut log, "events", &[1]);
    log.sync().unwrap();
    append(&mut log, "events", &[2]);
    disk.fail(Call::Sync, 1, ErrorKind::Other);
    assert!(log.sync().is_err());
    drop(log);
    // The process ends and the system goes on: its memory shows the second event, and takes it for written.
    let (log, recovery) = open(&shared(&disk), &tiny());
    assert_eq!((log.next_offset("events"), recovery.cut_bytes), (2, 0));
    drop(log);
    let disk = disk.crash(0, Crash::DropAll);
    open(&shared(&disk), &tiny());
    assert_eq!(read_ids(&shared(&disk), None), [1, 2]);
}

#[test]
fn test_a_failed_sync_elsewhere_stops_the_log() {
    let disk = MemoryDisk::new();
    let (mut log, _) = open(&shared(&disk), &tiny());
    append(&mut log, "events", &[1]);
    let flush = log.begin_sync();
    disk.fail(Call::Sync, 1, ErrorKind::Other);
    assert!(flush.run().is_err());
    assert!(log.sync().is_err());
    assert_eq!(log.durable(), 2, "the epoch");
}

#[test]
fn test_a_file_that_cannot_be_removed_stays_and_the_log_goes_on() {
    let disk = MemoryDisk::new();
    let settings = Settings { retention_bytes: Some(4096), ..tiny() };
    let (mut log, _) = open(&shared(&disk), &settings);
    for next in 0..400 {
        log.room(500).unwrap();
        append(&mut log, "events", &[next]);
    }
    log.sync().unwrap();
    let before = segments(&disk).len();
    disk.fail(Call::Remove, 2, ErrorKind::PermissionDenied);
    let words = log.trim(NOW_US, u64::MAX).unwrap_err().to_string();
    assert!(words.contains("could not remove log/"), "{words}");
    assert_eq!(segments(&disk).len(), before - 1);
    append(&mut log, "events", &[400]);
    log.sync().unwrap();
    assert_eq!(log.trim(NOW_US, u64::MAX).unwrap().segments as usize, before - 2);
    let found = read_ids(&shared(&disk), None);
    assert_eq!(found, (found[0]..=400).collect::<Vec<i64>>());
    // Whether a removal is durable is another matter: after a sync that failed nothing is tried again.
    for next in 401..600 {
        log.room(500).unwrap();
        append(&mut log, "events", &[next]);
    }
    disk.fail(Call::SyncFolder, 1, ErrorKind::Other);
    assert!(log.trim(NOW_US, u64::MAX).is_err());
    assert!(log.check().is_err());
}

/// Appends and syncs until something fails; returns what was acknowledged.
fn work(disk: &MemoryDisk, acknowledged: &mut i64) -> Result<()> {
    let (mut log, _) = Log::open(shared(disk), tiny(), NOW_US)?;
    let id = log.define("events", &schema())?;
    for next in 0..60 {
        log.room(500)?;
        log.append(&[section(id, &[next])], NOW_US)?;
        if next % 3 == 2 {
            log.sync()?;
            *acknowledged = next + 1;
        }
        if next % 20 == 19 {
            log.trim(NOW_US, 0)?;
        }
    }
    log.close()?;
    *acknowledged = 60;
    Ok(())
}

#[test]
fn test_whichever_call_fails_nothing_acknowledged_is_lost() {
    let sound = MemoryDisk::new();
    work(&sound, &mut 0).unwrap();
    let calls = [
        Call::Open,
        Call::Read,
        Call::Write,
        Call::Sync,
        Call::Allocate,
        Call::Rename,
        Call::List,
        Call::SyncFolder,
    ];
    let mut failed = 0;
    for call in calls {
        for nth in 1..=sound.calls(call) {
            let disk = MemoryDisk::new();
            let mut acknowledged = 0;
            disk.fail(call, nth, ErrorKind::Other);
            failed += usize::from(work(&disk, &mut acknowledged).is_err());
            for (seed, crash) in [(0, Crash::KeepAll), (0, Crash::DropAll), (nth, Crash::Random)] {
                let disk = disk.crash(seed, crash);
                let what = format!("{call:?} {nth} {crash:?}, acknowledged {acknowledged}");
                let opened = Log::open(shared(&disk), tiny(), NOW_US);
                opened.unwrap_or_else(|error| panic!("{what}: {error}")).0.close().unwrap();
                let found = read_ids(&shared(&disk), None);
                assert_eq!(found, (0..found.len() as i64).collect::<Vec<_>>(), "{what}");
                assert!(found.len() as i64 >= acknowledged, "{what}: found {}", found.len());
            }
        }
    }
    assert!(failed > 100, "{failed} failures");
}

#[test]
fn test_a_full_disk_is_known_before_and_appending_resumes_by_itself() {
    for background in [false, true] {
        let disk = MemoryDisk::new();
        disk.limit(Some(8192 + 4096 + 1000));
        let settings = Settings { background, ..tiny() };
        let (mut log, _) = open(&shared(&disk), &settings);
        let mut next = 0;
        let refusal = loop {
            match log.room(200) {
                Ok(()) => _ = append(&mut log, "events", &[next]),
                Err(error) => break error,
            }
            next += 1;
        };
        assert!(matches!(refusal, Error::Full { .. }), "{refusal}");
        assert!(next > 10);
        let events = log.define("events", &schema()).unwrap();
        let large: Vec<i64> = (0..30).collect();
        let refused = log.append(&[section(events, &large)], NOW_US).unwrap_err();
        assert!(
            matches!(refused, Error::Full { .. }),
            "append by itself is refused before it writes: {refused}"
        );
        log.sync().unwrap();
        assert_eq!(read_ids(&shared(&disk), None).len(), next as usize);
        assert!(matches!(log.room(200), Err(Error::Full { .. })));
        disk.limit(Some(8192 + 2 * 4096));
        let before = next;
        while log.room(200).is_ok() {
            append(&mut log, "events", &[next]);
            next += 1;
        }
        assert!(next > before + 10);
        log.close().unwrap();
        // A start on the full disk works, and retention makes room.
        let settings = Settings { retention_bytes: Some(4096), ..settings };
        let (mut log, recovery) = open(&shared(&disk), &settings);
        assert_eq!(recovery.cut_bytes, 0);
        log.trim(NOW_US, u64::MAX).unwrap();
        log.room(200).unwrap();
        append(&mut log, "events", &[next]);
        log.sync().unwrap();
        let found = read_ids(&shared(&disk), None);
        assert_eq!(found, (found[0]..=next).collect::<Vec<i64>>());
    }
}

#[test]
fn test_a_log_survives_more_restarts_than_a_segment_has_room_for() {
    let disk = MemoryDisk::new();
    let mut next = 0;
    for start in 0..300 {
        let (mut log, recovery) = open(&shared(&disk), &tiny());
        assert_eq!(recovery.epoch, start + 1);
        if start % 10 == 0 {
            append(&mut log, "events", &[next]);
            next += 1;
        }
        log.close().unwrap();
    }
    assert!(segments(&disk).len() > 3);
    assert_eq!(read_ids(&shared(&disk), None), (0..next).collect::<Vec<i64>>());
    assert!(verify(shared(&disk)).unwrap().sound);
}

#[test]
fn test_a_live_reader_refuses_what_was_damaged_under_it() {
    let disk = acknowledged_log(75, true);
    let file = segments(&disk)[1].clone();
    let mut reader = Reader::open(shared(&disk), None).unwrap();
    let mut bytes = disk.contents(&file).unwrap();
    bytes[2000] ^= 1;
    disk.put(&file, &bytes);
    let error = loop {
        match reader.next() {
            Ok(commit) => assert!(commit.is_some(), "a shorter answer"),
            Err(error) => break error,
        }
    };
    let Error::Damaged { file: named, .. } = error else { panic!("{error}") };
    assert_eq!(named, file);
}

#[test]
fn test_looking_up_a_damaged_commit_is_refused_and_its_neighbours_are_found() {
    let disk = MemoryDisk::new();
    let (mut log, _) = open(&shared(&disk), &tiny());
    let addresses: Vec<_> = (0..40).map(|id| append(&mut log, "events", &[id]).address).collect();
    log.close().unwrap();
    let file = segments(&disk)[0].clone();
    let mut bytes = disk.contents(&file).unwrap();
    bytes[addresses[20].offset() as usize + 60] ^= 1;
    disk.put(&file, &bytes);
    let (log, _) = open(&shared(&disk), &tiny());
    let Err(Error::Damaged { file: named, offset, .. }) = log.read(addresses[20]) else {
        panic!("it is damaged")
    };
    assert_eq!((named, offset), (file, addresses[20].offset()));
    assert_eq!(ids(&log.read(addresses[19]).unwrap()), [19]);
    assert_eq!(ids(&log.read(addresses[21]).unwrap()), [21]);
}

#[test]
fn test_a_reader_at_rest_reads_all_segments_without_the_two_slot_file() {
    let disk = acknowledged_log(75, true);
    disk.remove("log/durable").unwrap();
    assert_eq!(
        read_ids(&shared(&disk), None).len(),
        74,
        "all but the very last, which nothing later vouches for"
    );
}

#[test]
fn test_verify_tells_a_torn_end_from_damage() {
    let disk = acknowledged_log(10, false);
    let file = segments(&disk).pop().unwrap();
    let mut bytes = disk.contents(&file).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    bytes[end.next_multiple_of(8)..][..100].fill(7);
    disk.put(&file, &bytes);
    let report = verify(shared(&disk)).unwrap();
    assert!(report.sound);
    assert_eq!(report.torn_bytes, 100);
    assert_eq!(open(&shared(&disk), &tiny()).1.cut_bytes, 100);
    assert_eq!(verify(shared(&disk)).unwrap().torn_bytes, 0);
}
