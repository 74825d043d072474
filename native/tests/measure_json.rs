//! Figures for `docs/decisions/0003-json-decoding.md`; run with `--ignored --nocapture`.

use std::hint::black_box;

use penstock_native::answer::{DecisionWriter, Extra, finish};
use penstock_native::decode::{ArrayCut, Decoder, Limits, split_lines};
use penstock_native::schema::{Field, Schema, Type};

fn field(name: &str, kind: Type, optional: bool) -> Field {
    Field { name: name.to_owned(), kind, optional }
}

fn payment() -> Schema {
    let fields = vec![
        field("payment_id", Type::Text, false),
        field("card", Type::Text, false),
        field("terminal", Type::Text, false),
        field("country", Type::Text, true),
        field("merchant", Type::Text, false),
        field("category", Type::Int64, false),
        field("amount", Type::Decimal(12, 2), false),
        field("fee", Type::Decimal(12, 2), false),
        field("distance_km", Type::Float64, true),
        field("online", Type::Bool, false),
        field("attempt", Type::Int64, false),
        field("paid_at", Type::Timestamp, false),
    ];
    Schema { fields }
}

fn bodies(count: usize) -> Vec<Vec<u8>> {
    let body = |i: usize| {
        format!(
            "{{\"payment_id\":\"pay-2026-{i:012}\",\"card\":\"4{:015}\",\"terminal\":\"T-{:06}\",\"country\":\"DE\",\
             \"merchant\":\"Bäckerei am Markt {}\",\"category\":{},\"amount\":{}.{:02},\"fee\":\"0.{:02}\",\
             \"distance_km\":{},\"online\":{},\"attempt\":1,\"paid_at\":\"2026-11-{:02}T12:{:02}:{:02}.{:06}Z\"}}",
            i * 7919 % 1_000_000_007,
            i % 10_000,
            i % 97,
            5000 + i % 999,
            i % 3000,
            i % 100,
            i % 100,
            (i % 10_000) as f64 / 7.0,
            i.is_multiple_of(2),
            1 + i % 30,
            i % 60,
            i / 60 % 60,
            i % 1_000_000,
        )
    };
    (0..count).map(|i| body(i).into_bytes()).collect()
}

/// The thread's own time on a processor: a busy machine disturbs it less than the wall clock.
fn thread_ns() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

fn median_ns(rounds: usize, units: usize, mut run: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..rounds)
        .map(|_| {
            let start = thread_ns();
            run();
            (thread_ns() - start) / units as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[rounds / 2]
}

#[test]
#[ignore = "a measurement"]
fn measure_decoding() {
    let decoder = Decoder::new(&payment(), 0, Limits::default());
    let all = bodies(100_000);
    println!("bytes per event: {}", all[50_000].len());
    for size in [1, 10, 64, 1_000, 10_000] {
        let calls = (200_000 / size).clamp(1, 20_000);
        let ns = median_ns(9, calls * size, || {
            for call in 0..calls {
                let at = call * size % (all.len() - size + 1);
                black_box(decoder.decode(all[at..at + size].iter().map(Vec::as_slice)));
            }
        });
        println!("decode, {size:>6} per call: {ns:.0} ns per event");
    }
    let lines = all[..1_000].join(&b'\n');
    let array = [b"[".as_slice(), &all[..1_000].join(&b','), b"]"].concat();
    println!(
        "split_lines: {:.0} ns per event",
        median_ns(99, 1_000, || drop(black_box(split_lines(&lines))))
    );
    println!(
        "ArrayCut: {:.0} ns per event",
        median_ns(99, 1_000, || drop(black_box(ArrayCut::new(array.clone()).unwrap().advance(usize::MAX))))
    );
    let serde = median_ns(99, 1_000, || {
        for body in &all[..1_000] {
            black_box(serde_json::from_slice::<serde::de::IgnoredAny>(body).unwrap());
        }
    });
    println!("serde_json skipping the body, for comparison: {serde:.0} ns per event");
}

#[test]
#[ignore = "a measurement"]
fn measure_answers() {
    let mut fields = vec![
        field("id", Type::Text, false),
        field("offset", Type::Int64, true),
        field("outcome", Type::Text, false),
        field("reasons", Type::Text, false),
        field("score", Type::Float64, true),
    ];
    let kinds = [Type::Int64, Type::Float64, Type::Decimal(38, 2)];
    fields.extend((0..15).map(|i| field(&format!("card_feature_number_{i}"), kinds[i % 3], true)));
    fields.extend([field("policy_version", Type::Text, false), field("cause", Type::Text, true)]);
    fields.push(field("late", Type::Bool, true));
    let schema = Schema { fields };
    let row = |i: usize| {
        let features: Vec<String> =
            (0..15).map(|f| format!("\"card_feature_number_{f}\":{}", value(i, f))).collect();
        format!(
            "{{\"id\":\"pay-{i:012}\",\"offset\":{i},\"outcome\":\"review\",\
             \"reasons\":\"[{{\\\"rule\\\":\\\"far\\\",\\\"code\\\":\\\"R01\\\"}}]\",\
             \"policy_version\":\"7f3a91\",{}}}",
            features.join(",")
        )
    };
    let bodies: Vec<String> = (0..1_000).map(row).collect();
    let decisions = Decoder::new(&schema, 0, Limits::default()).decode(bodies.iter().map(String::as_bytes));
    assert!(decisions.refused.is_empty(), "{}", decisions.refused[0].1);
    let writer = DecisionWriter::new(&schema, 5..20);
    let decisions = writer.rows(&decisions.batch);
    let mut out = Vec::with_capacity(1 << 20);
    let ns = median_ns(99, 1_000, || {
        out.clear();
        for row in 0..1_000 {
            decisions.write(&mut out, row, Extra::default());
            finish(&mut out, 412_000);
        }
        black_box(&out);
    });
    println!("answer of 15 features, {} bytes: {ns:.0} ns", out.len() / 1_000);
}

fn value(i: usize, feature: usize) -> String {
    match feature % 3 {
        0 => format!("{}", i % 40),
        1 => format!("{}", (i * 31 + feature) as f64 / 7.0),
        _ => format!("\"{}.{:02}\"", i * 13 % 9_000, feature),
    }
}
