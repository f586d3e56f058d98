use api_types::StopReason;

use super::*;

fn engine(model: &str, backend: &str) -> Engine {
    Engine { model: model.to_owned(), quantization: None, backend: backend.to_owned(), device: None }
}

fn size(prompt_bytes: u64, max_tokens: u32) -> Size {
    Size { prompt_bytes, max_tokens: Some(max_tokens) }
}

/// 4 bytes a token, 2 ms per prompt token, 10 ms per token, 5 ms beside that.
fn run(rates: &mut Rates, engine: &Engine, bytes: u64, max_tokens: u32, tokens_out: u32) {
    let (tokens_in, decode) = ((bytes / 4) as u32, u64::from(tokens_out - 1) * 10);
    let end = RunEnd {
        tokens_in,
        tokens_out,
        queue_time_ms: 0,
        prefill_time_ms: u64::from(tokens_in) * 2,
        decode_time_ms: decode,
        stop_reason: StopReason::Eos,
        seed: None,
        tokens_cached: None,
    };
    rates.note_run(engine, size(bytes, max_tokens), &end, u64::from(tokens_in) * 2 + decode + 5, 1);
}

#[test]
fn what_was_never_seen_is_unknown() {
    let mut rates = Rates::default();
    assert_eq!(rates.service(&engine("a", "cpu"), size(400, 100), 1), None);
    run(&mut rates, &engine("a", "cpu"), 400, 100, 51);
    assert_eq!(rates.service(&engine("b", "cuda"), size(400, 100), 1), None, "another backend");
    let unbounded = Size { prompt_bytes: 400, max_tokens: None };
    assert_eq!(rates.service(&engine("a", "cpu"), unbounded, 1), None, "no job without a bound ended yet");
}

#[test]
fn the_estimate_is_prefill_and_expected_decode_and_says_what_it_rests_on() {
    let mut rates = Rates::default();
    (0..20).for_each(|_| run(&mut rates, &engine("a", "cpu"), 400, 100, 51));
    let close = |found: Option<Service>, ms: f64, basis| {
        let Service { ms: found, basis: on, .. } = found.expect("known");
        assert!((found - ms).abs() < 1.0 && on == basis, "{found} on {on:?}, not {ms} on {basis:?}");
    };
    close(rates.service(&engine("a", "cpu"), size(400, 100), 1), 200.0 + 500.0 + 5.0, Basis::Exact);
    close(rates.service(&engine("a", "cpu"), size(800, 100), 1), 400.0 + 500.0 + 5.0, Basis::Exact);
    close(rates.service(&engine("a", "cuda"), size(400, 100), 1), 705.0, Basis::Model);
    close(rates.service(&engine("b", "cpu"), size(400, 100), 1), 705.0, Basis::Backend);
}

#[test]
fn what_a_worker_held_of_a_prompt_makes_nobody_think_that_prompts_are_read_faster_or_slower() {
    let (mut rates, chat) = (Rates::default(), engine("a", "cpu"));
    run(&mut rates, &chat, 400, 100, 51);
    let cold = rates.service(&chat, size(400, 100), 1).expect("known");
    for cached in [40, 99] {
        let read = 100 - cached;
        let end = RunEnd {
            tokens_in: 100,
            tokens_out: 51,
            queue_time_ms: 0,
            // A step takes its time, however few tokens are in it.
            prefill_time_ms: u64::from(read * 2).max(20),
            decode_time_ms: 500,
            stop_reason: StopReason::Eos,
            seed: None,
            tokens_cached: Some(cached),
        };
        (0..7).for_each(|_| rates.note_run(&chat, size(400, 100), &end, 505 + end.prefill_time_ms, 1));
    }
    let after = rates.service(&chat, size(400, 100), 1).expect("known");
    assert!((after.ms - cold.ms).abs() < 1.0, "{} and {}", cold.ms, after.ms);
    assert!(after.is_believed() && !cold.is_believed(), "such runs count");
}

#[test]
fn long_answers_are_expected_where_long_ones_were_asked_for() {
    let mut rates = Rates::default();
    let chat = engine("a", "cpu");
    for _ in 0..30 {
        run(&mut rates, &chat, 40, 16, 16);
        run(&mut rates, &chat, 40, 4_096, 205);
    }
    let decode = |max_tokens| rates.service(&chat, size(40, max_tokens), 1).map_or(0.0, |service| service.ms);
    assert!((decode(16) - 175.0).abs() < 2.0, "{}", decode(16));
    assert!((decode(4_096) - 2_065.0).abs() < 20.0, "{}", decode(4_096));
}

#[test]
fn keys_are_bounded_and_the_one_seen_longest_ago_goes() {
    let mut rates = Rates::default();
    for n in 0..(MOST_KEYS * 2) {
        run(&mut rates, &engine(&format!("m{n:04}"), &format!("b{n:04}")), 40, 16, 4);
        rates.note_load(&format!("m{n:04}"), "mac", 1_000);
    }
    let lengths = [rates.paces.len(), rates.backends.len(), rates.manners.len(), rates.loads.0.len()];
    assert_eq!(lengths, [MOST_KEYS; 4]);
    assert!(rates.paces.keys().all(|key| key.model.as_str() >= "m0128"));
}

#[test]
fn load_times_are_known_by_pool_and_the_slowest_pool_stands_in_for_one_that_is_not() {
    let mut rates = Rates::default();
    rates.note_load("a", "mac", 2_000);
    rates.note_load("a", "box", 8_000);
    rates.note_load("b", "mac", 90_000);
    assert_eq!(rates.load("a", "mac").map(|took| took.ms), Some(2_000.0));
    assert_eq!(rates.load("a", "attic").map(|took| took.ms), Some(8_000.0));
    assert_eq!(rates.load("c", "mac").map(|took| took.ms), None);
    assert_eq!(rates.spawn("a", "mac").map(|took| took.ms), None, "reading is not all there is to a spawn");
    rates.note_spawn("a", "mac", 3_000);
    assert_eq!(rates.spawn("a", "mac").map(|took| took.ms), Some(3_000.0));
}

#[test]
fn rates_survive_a_restart() {
    let mut rates = Rates::default();
    run(&mut rates, &engine("a", "cpu"), 400, 100, 51);
    rates.note_load("a", "mac", 2_000);
    let text = serde_json::to_string(&rates).expect("JSON");
    assert_eq!(serde_json::from_str::<Rates>(&text).expect("the same"), rates);
}
