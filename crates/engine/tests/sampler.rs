//! The sampler against a straightforward reference that sorts everything.

use std::collections::BTreeMap;

use api_types::sampling::Sampling;
use engine::sampler::{Sampler, uniform};
use proptest::prelude::*;

fn reference(logits: &[f32], history: &[u32], prompt: &[u32], s: &Sampling, seed: u64, index: u64) -> u32 {
    let mut scores: Vec<f64> = logits.iter().map(|score| f64::from(*score)).collect();
    for (token, score) in scores.iter_mut().enumerate() {
        let token = token as u32;
        let count = history.iter().filter(|seen| **seen == token).count() as f32;
        let mut value = *score as f32;
        if count > 0.0 || prompt.contains(&token) {
            value = if value > 0.0 { value / s.repetition_penalty } else { value * s.repetition_penalty };
        }
        if count > 0.0 {
            value -= s.frequency_penalty * count + s.presence_penalty;
        }
        value += s.logit_bias.get(&token).copied().unwrap_or(0.0);
        *score = f64::from(value);
    }
    let mut ranked: Vec<(u32, f64)> = (0..).zip(scores).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if s.temperature == 0.0 {
        return ranked[0].0;
    }
    let high = ranked[0].1;
    if s.top_k > 0 {
        ranked.truncate(s.top_k as usize);
    }
    let sum = |set: &[(u32, f64)], t: f64| set.iter().map(|(_, x)| ((x - high) / t).exp()).sum::<f64>();
    if s.top_p < 1.0 {
        let mut by_id = ranked.clone();
        by_id.sort_by_key(|entry| entry.0);
        let wanted = f64::from(s.top_p) * sum(&by_id, 1.0);
        let mut reached = 0.0;
        let keep = ranked.iter().position(|(_, x)| {
            reached += (x - high).exp();
            reached >= wanted
        });
        ranked.truncate(keep.map_or(ranked.len(), |at| at + 1));
    }
    ranked.retain(|(_, x)| s.min_p == 0.0 || *x >= high + f64::from(s.min_p).ln());
    ranked.sort_by_key(|entry| entry.0);
    let t = f64::from(s.temperature);
    let goal = uniform(seed, index) * sum(&ranked, t);
    let mut behind = 0.0;
    for (token, x) in &ranked {
        behind += ((x - high) / t).exp();
        if behind > goal {
            return *token;
        }
    }
    ranked.iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("never empty").0
}

fn settings() -> impl Strategy<Value = Sampling> {
    (
        prop_oneof![Just(0.0f32), 0.05f32..2.0],
        prop_oneof![Just(1.0f32), 0.05f32..1.0],
        0u32..20,
        prop_oneof![Just(0.0f32), 0.01f32..0.9],
        prop_oneof![Just(1.0f32), 0.5f32..2.0],
        -1.0f32..1.0,
        -1.0f32..1.0,
        prop::collection::btree_map(0u32..300, -5.0f32..5.0, 0..3),
    )
        .prop_map(|(temperature, top_p, top_k, min_p, repetition_penalty, frequency, presence, bias)| {
            Sampling {
                temperature,
                top_p,
                top_k,
                min_p,
                repetition_penalty,
                frequency_penalty: frequency,
                presence_penalty: presence,
                logit_bias: bias,
                ..Sampling::default()
            }
        })
}

proptest! {
    #[test]
    fn it_chooses_what_the_reference_chooses(
        s in settings(),
        logits in prop::collection::vec(-8.0f32..8.0, 2..300),
        prompt in prop::collection::vec(0u32..300, 0..5),
        seed: u64,
    ) {
        let mut sampler = Sampler::new(&s, seed, &prompt);
        let mut history = Vec::new();
        for index in 0..6 {
            let wanted = reference(&logits, &history, &prompt, &s, seed, index);
            let got = sampler.next(&logits).expect("scores");
            prop_assert_eq!(got, wanted, "token {}", index);
            history.push(got);
        }
    }
}

#[test]
fn greedy_takes_the_lowest_id_of_equals() {
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    assert_eq!(Sampler::new(&greedy, 1, &[]).next(&[1.0, 3.0, 3.0, f32::NAN]), Some(1));
    assert_eq!(Sampler::new(&greedy, 1, &[]).next(&[]), None);
}

#[test]
fn bias_can_force_and_forbid() {
    let forced =
        Sampling { temperature: 0.0, logit_bias: BTreeMap::from([(2, 100.0)]), ..Sampling::default() };
    assert_eq!(Sampler::new(&forced, 1, &[]).next(&[5.0, 9.0, -3.0]), Some(2));
    let forbidden = Sampling { logit_bias: BTreeMap::from([(1, -100.0)]), ..Sampling::default() };
    for seed in 0..200 {
        assert_ne!(Sampler::new(&forbidden, seed, &[]).next(&[5.0, 9.0, -3.0]), Some(1));
    }
}

#[test]
fn draws_follow_the_probabilities() {
    let plain = Sampling { temperature: 1.0, ..Sampling::default() };
    // e^0 : e^ln(3) = 1 : 3
    let logits = [0.0, 3f32.ln()];
    let second = (0..20_000).filter(|seed| Sampler::new(&plain, *seed, &[]).next(&logits) == Some(1)).count();
    assert!((14_600..15_400).contains(&second), "{second} of 20000");
}

#[test]
fn a_draw_depends_on_seed_and_index_alone() {
    assert_eq!(uniform(7, 3).to_bits(), uniform(7, 3).to_bits());
    assert_ne!(uniform(7, 3).to_bits(), uniform(7, 4).to_bits());
    assert_ne!(uniform(7, 3).to_bits(), uniform(8, 3).to_bits());
    assert!((0..10_000).map(|i| uniform(1, i)).all(|u| (0.0..1.0).contains(&u)));
}
