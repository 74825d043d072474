//! Texts: lengths and places are counted in characters, letters change by Unicode's simple mapping.

use super::column::{Args, Outcome, Source, TextBuilder, Texts, bits};
use super::plan::Operation;
use crate::error::Result;

// Letters

pub(super) fn change_case(args: &Args) -> Result<Outcome> {
    let change = if args.node.operation == Operation::Lower { lower } else { upper };
    let texts = args.texts(0);
    let mut builder = TextBuilder::new(args.rows);
    for row in 0..args.rows {
        let text = texts.get(row);
        change(text, &mut builder.bytes);
        builder.end()?;
    }
    Ok(Outcome::whole(builder.finish(), args.nulls()))
}

fn lower(text: &[u8], target: &mut Vec<u8>) {
    if text.is_ascii() {
        target.extend(text.iter().map(u8::to_ascii_lowercase));
    } else {
        extend(target, characters(text).chars().map(lower_character));
    }
}

fn upper(text: &[u8], target: &mut Vec<u8>) {
    if text.is_ascii() {
        target.extend(text.iter().map(u8::to_ascii_uppercase));
    } else {
        extend(target, characters(text).chars().map(upper_character));
    }
}

fn characters(text: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(text)
}

fn extend(target: &mut Vec<u8>, characters: impl Iterator<Item = char>) {
    for character in characters {
        target.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    }
}

fn lower_character(character: char) -> char {
    // Of what Unicode maps to several characters, the first is the simple mapping.
    character.to_lowercase().next().unwrap_or(character)
}

fn upper_character(character: char) -> char {
    let mut mapped = character.to_uppercase();
    match (mapped.next(), mapped.next()) {
        (Some(single), None) => single,
        _ => upper_special(character),
    }
}

/// Letters whose full upper case is several characters, and what they become alone.
fn upper_special(character: char) -> char {
    let shift = match character {
        'ß' => return 'ẞ',
        '\u{1f80}'..='\u{1f87}' | '\u{1f90}'..='\u{1f97}' | '\u{1fa0}'..='\u{1fa7}' => 8,
        '\u{1fb3}' | '\u{1fc3}' | '\u{1ff3}' => 9,
        _ => 0,
    };
    char::from_u32(character as u32 + shift).unwrap_or(character)
}

// Lengths and places

pub(super) fn length(args: &Args) -> Outcome {
    let texts = args.texts(0);
    let values: Vec<i64> = (0..args.rows).map(|row| count(texts.get(row))).collect();
    Outcome::whole(values, args.nulls())
}

fn count(text: &[u8]) -> i64 {
    text.iter().filter(|&&byte| starts_character(byte)).count() as i64
}

fn starts_character(byte: u8) -> bool {
    byte & 0xC0 != 0x80
}

/// DuckDB's rules: places count from 1, negative ones from the end, and a negative length takes
/// what is before the place. It refuses what is beyond 32 bits; so that is a fault here.
pub(super) fn substr(args: &Args) -> Result<Outcome> {
    const LIMIT: i64 = 1 << 32;
    let (texts, places) = (args.texts(0), args.ints(1));
    let lengths = (args.len() == 3).then(|| args.ints(2));
    let length = |row| lengths.map_or(LIMIT - 1, |lengths| lengths.get(row));
    let fault = |row| [places.get(row), length(row)].iter().any(|value| !(-LIMIT..LIMIT).contains(value));
    let mut builder = TextBuilder::new(args.rows);
    for row in 0..args.rows {
        if !fault(row) {
            let part = part(texts.get(row), places.get(row), length(row));
            builder.bytes.extend_from_slice(part);
        }
        builder.end()?;
    }
    Ok(Outcome::new(builder.finish(), args.nulls(), Some(bits(args.rows, fault))))
}

fn part(text: &[u8], place: i64, length: i64) -> &[u8] {
    let characters = count(text);
    let start = if place < 0 { characters + place } else { place - 1 };
    let (start, end) = (start.min(start + length), start.max(start + length));
    let (start, end) = (start.clamp(0, characters), end.clamp(0, characters));
    &text[byte_place(text, characters, start)..byte_place(text, characters, end)]
}

/// Where the character of this number begins.
fn byte_place(text: &[u8], characters: i64, number: i64) -> usize {
    if characters as usize == text.len() || number == 0 {
        return number as usize;
    }
    let starts = text.iter().enumerate().filter(|(_, byte)| starts_character(**byte));
    starts.map(|(place, _)| place).nth(number as usize).unwrap_or(text.len())
}

// Patterns

pub(super) fn starts_with(args: &Args) -> Outcome {
    let (texts, prefixes) = (args.texts(0), args.texts(1));
    Outcome::whole(bits(args.rows, |row| texts.get(row).starts_with(prefixes.get(row))), args.nulls())
}

/// `%` is any text, `_` any one character. A pattern that ends with the escape character is a fault.
pub(super) fn like(args: &Args) -> Outcome {
    let (texts, patterns) = (args.texts(0), args.texts(1));
    let mut escape = [0; 4];
    let escape = args.node.escape.map(|character| &*character.encode_utf8(&mut escape));
    let escape = escape.map_or(b"".as_slice(), str::as_bytes);
    let values = bits(args.rows, |row| matches(texts.get(row), patterns.get(row), escape));
    let faults = (!escape.is_empty()).then(|| unfinished(args.rows, patterns, escape));
    Outcome::new(values, args.nulls(), faults)
}

fn unfinished(rows: usize, patterns: Texts, escape: &[u8]) -> arrow_buffer::BooleanBuffer {
    bits(rows, |row| {
        let mut pattern = patterns.get(row);
        while let Some((_, rest)) = next(pattern, escape) {
            pattern = rest;
        }
        !pattern.is_empty()
    })
}

enum Wanted<'a> {
    Anything,
    OneCharacter,
    Character(&'a [u8]),
}

/// What the pattern wants first, and the rest of it; nothing at its end or at an escape without a
/// character after it.
fn next<'a>(pattern: &'a [u8], escape: &[u8]) -> Option<(Wanted<'a>, &'a [u8])> {
    let (first, rest) = split_character(pattern)?;
    if !escape.is_empty() && first == escape {
        let (escaped, rest) = split_character(rest)?;
        return Some((Wanted::Character(escaped), rest));
    }
    let wanted = match first {
        b"%" => Wanted::Anything,
        b"_" => Wanted::OneCharacter,
        _ => Wanted::Character(first),
    };
    Some((wanted, rest))
}

fn split_character(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let more = text.get(1..)?.iter().take_while(|&&byte| !starts_character(byte)).count();
    Some(text.split_at(1 + more))
}

/// Match greedily; on a mismatch let the last `%` take one character more. An earlier `%` never has
/// to be tried again, so the time is at most the product of the two lengths.
fn matches(text: &[u8], pattern: &[u8], escape: &[u8]) -> bool {
    let (mut text, mut pattern) = (text, pattern);
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        let step = match next(pattern, escape) {
            Some((Wanted::Anything, rest)) => {
                retry = Some((text, rest));
                pattern = rest;
                continue;
            }
            None if text.is_empty() => return pattern.is_empty(),
            None => None,
            Some((Wanted::OneCharacter, rest)) => split_character(text).map(|(_, after)| (after, rest)),
            Some((Wanted::Character(wanted), rest)) => text.strip_prefix(wanted).map(|after| (after, rest)),
        };
        (text, pattern) = match (step, &mut retry) {
            (Some(step), _) => step,
            (None, Some((from, rest))) => match split_character(from) {
                Some((_, after)) => {
                    *from = after;
                    (after, *rest)
                }
                None => return false,
            },
            (None, None) => return false,
        };
    }
}
