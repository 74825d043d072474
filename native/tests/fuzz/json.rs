use crate::support::Chance;
use crate::{checks, every_seed, mutate};

const EVENTS: [&str; 6] = [
    r#"{"id":"p1","count":-7,"mean":1.5e3,"amount":"12.50","online":true,"paid_at":"2026-11-01T12:00:00.5Z"}"#,
    r#"{"id": "\u00e9\ud83d\ude00\n", "count": 9223372036854775807, "mean": -0.0, "amount": 1e2}"#,
    r#"{"paid_at":"0001-01-01T00:00:00+23:59","id":"","amount":-0.01,"count":null,"online":null}"#,
    r#"{"id":"\"\\\/\b\f\n\r\t","mean":4.9e-324,"amount":"99999999.99"}"#,
    r#"{"id":"ä😀","mean":1.7976931348623157e308,"paid_at":"9999-12-31T23:59:59.999999Z"}"#,
    r#"  {"id" : "x" , "count" : 0 }  "#,
];

pub fn draw(chance: &mut Chance) -> Vec<u8> {
    EVENTS[chance.below(6) as usize].as_bytes().to_vec()
}

pub fn draw_array(chance: &mut Chance) -> Vec<u8> {
    let events: Vec<&str> = (0..chance.below(5)).map(|_| EVENTS[chance.below(6) as usize]).collect();
    format!("[{}]", events.join(",")).into_bytes()
}

#[test]
fn test_fuzz_what_the_decoder_takes_is_json_and_comes_back_the_same() {
    every_seed(60_000, |chance| {
        let mut body = draw(chance);
        mutate(&mut body, chance);
        checks::json(&body);
    });
}

#[test]
fn test_fuzz_what_is_cut_from_an_array_are_its_values() {
    every_seed(20_000, |chance| {
        let mut body = draw_array(chance);
        mutate(&mut body, chance);
        checks::array(&body, 1 + chance.below(64) as usize);
    });
}
