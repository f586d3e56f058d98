//! What is drawn under a schema validates against it, whatever the scores are.

use std::collections::BTreeMap;

use api_types::sampling::Sampling;
use engine::constraint::{Constraint, ConstraintError, Vocabulary};
use engine::sampler::{Sampler, uniform};
use engine::{Backend, Engine, LoadOptions, Token};
use serde_json::{Value, json};

/// Long enough for every answer here.
const MOST: usize = 4000;

struct Model {
    engine: Box<dyn Engine>,
    vocabulary: Vocabulary,
}

impl Model {
    fn open() -> Self {
        let options =
            LoadOptions { backend: Backend::Fake, gpus: Vec::new(), slots: 1, context: None, threads: None };
        let engine = engine::open("fake:bee", &options, Box::new(|_| true)).expect("loads");
        let vocabulary = Vocabulary::new(&*engine.tokenizer(), engine.info()).expect("bytes of its tokens");
        Self { engine, vocabulary }
    }

    fn constraint(&self, schema: &Value) -> Constraint {
        self.vocabulary.json(&schema.to_string()).unwrap_or_else(|error| panic!("{schema}: {error}"))
    }

    fn refusal(&self, schema: &str) -> String {
        match self.vocabulary.json(schema) {
            Err(ConstraintError::Schema(reason)) => reason,
            other => panic!("{schema}: {other:?}"),
        }
    }

    /// Scores without any sense, except that texts and lists end some time.
    fn scores(&self, seed: u64, index: u64) -> Vec<f32> {
        let vocab = self.engine.info().vocab;
        let at = |token: Token| 6.0 * uniform(seed ^ (index << 20), u64::from(token)) as f32;
        let closes = [b'"', b'}', b']'].map(Token::from);
        (0..vocab).map(|token| at(token) + if closes.contains(&token) { 3.0 } else { 0.0 }).collect()
    }

    /// Draws until the text is complete or the model ends it.
    fn tokens(&self, schema: &Value, sampling: &Sampling, seed: u64) -> Vec<Token> {
        let mut constraint = self.constraint(schema);
        let mut sampler = Sampler::new(sampling, seed, &[]);
        let mut tokens = Vec::new();
        while !constraint.is_complete() {
            assert!(tokens.len() < MOST, "{schema}: no end in {:?}", self.text(&tokens));
            let scores = self.scores(seed, tokens.len() as u64);
            let allowed = constraint.allowed().expect("something goes on");
            let token = sampler.next_of(&scores, Some(allowed)).expect("scores");
            if self.engine.info().end_tokens.contains(&token) {
                break;
            }
            constraint.accept(token).expect("it was allowed");
            tokens.push(token);
        }
        tokens
    }

    fn text(&self, tokens: &[Token]) -> String {
        let mut bytes = Vec::new();
        tokens.iter().for_each(|token| self.engine.tokenizer().piece(*token, &mut bytes));
        String::from_utf8(bytes).expect("whole characters")
    }
}

/// The part of JSON Schema that these tests use.
fn validates(schema: &Value, value: &Value) -> bool {
    let number = |key: &str| schema[key].as_f64();
    let count = |key: &str, or: usize| schema[key].as_u64().map_or(or, |count| count as usize);
    if schema.get("enum").is_some_and(|allowed| !allowed.as_array().is_some_and(|all| all.contains(value))) {
        return false;
    }
    match schema["type"].as_str() {
        None => true,
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some(kind @ ("integer" | "number")) => value.as_f64().is_some_and(|found| {
            (kind == "number" || found.fract() == 0.0)
                && number("minimum").is_none_or(|least| found >= least)
                && number("maximum").is_none_or(|most| found <= most)
        }),
        Some("string") => value.as_str().is_some_and(|text| {
            (count("minLength", 0)..=count("maxLength", usize::MAX)).contains(&text.chars().count())
        }),
        Some("array") => value.as_array().is_some_and(|items| {
            (count("minItems", 0)..=count("maxItems", usize::MAX)).contains(&items.len())
                && items.iter().all(|item| validates(&schema["items"], item))
        }),
        Some("object") => value.as_object().is_some_and(|fields| {
            let required = schema["required"].as_array().into_iter().flatten();
            required.filter_map(Value::as_str).all(|name| fields.contains_key(name))
                && fields.iter().all(|(name, field)| match schema["properties"].get(name) {
                    Some(known) => validates(known, field),
                    None => schema["additionalProperties"] != json!(false),
                })
        }),
        Some(other) => panic!("the checker does not know {other}"),
    }
}

fn schemas() -> Vec<Value> {
    vec![
        json!({ "type": "string", "minLength": 3, "maxLength": 40 }),
        json!({ "type": "integer", "minimum": -3, "maximum": 1200 }),
        json!({ "enum": ["na\u{ef}ve", "\u{1f41d}\n\"", 7, null, { "a": [1] }] }),
        json!({ "type": "array", "minItems": 2, "maxItems": 5, "items": { "type": "number", "minimum": -1e3, "maximum": 1e3 } }),
        json!({
            "type": "object",
            "properties": {
                "name": { "type": "string" },
                "age": { "type": "integer", "minimum": 0, "maximum": 130 },
                "tags": { "type": "array", "maxItems": 3, "items": { "enum": ["bee", "hive", "caf\u{e9}"] } },
                "home": {
                    "type": "object",
                    "properties": { "lat": { "type": "number", "minimum": -90, "maximum": 90 }, "open": { "type": "boolean" } },
                    "required": ["lat", "open"],
                    "additionalProperties": false
                }
            },
            "required": ["name", "home"],
            "additionalProperties": false
        }),
    ]
}

#[test]
fn what_is_drawn_validates() {
    let model = Model::open();
    let settings = [
        Sampling { temperature: 0.0, ..Sampling::default() },
        Sampling { temperature: 1.0, ..Sampling::default() },
        Sampling { temperature: 2.0, top_k: 5, min_p: 0.01, repetition_penalty: 1.2, ..Sampling::default() },
        Sampling { top_p: 0.2, logit_bias: BTreeMap::from([(u32::from(b'x'), 2.0)]), ..Sampling::default() },
    ];
    for schema in schemas() {
        for (sampling, seed) in settings
            .iter()
            .zip((0..).step_by(1000))
            .flat_map(|(settings, from)| (from..from + 12).map(move |seed| (settings, seed)))
        {
            let text = model.text(&model.tokens(&schema, sampling, seed));
            let value: Value =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
            assert!(validates(&schema, &value), "{schema}: {text}");
            assert_eq!(text.trim(), text, "no white space around it");
        }
    }
}

#[test]
fn any_object_is_one() {
    let model = Model::open();
    let schema = json!({ "type": "object" });
    let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
    for seed in 0..40 {
        let text = model.text(&model.tokens(&schema, &sampling, seed));
        // Read over and not into a value: a number may be larger than any value holds.
        let read = serde_json::from_str::<serde::de::IgnoredAny>(&text);
        assert!(read.is_ok() && text.starts_with('{'), "{text}");
    }
}

#[test]
fn texts_are_drawn_with_escapes_and_characters_of_many_bytes() {
    let model = Model::open();
    let schema = json!({ "type": "string" });
    let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
    let said: String = (0..60).map(|seed| model.text(&model.tokens(&schema, &sampling, seed))).collect();
    assert!(said.contains('\\'), "{said}");
    assert!(said.chars().any(|letter| letter.len_utf8() > 2), "{said}");
}

#[test]
fn properties_come_in_the_order_of_the_schema() {
    let model = Model::open();
    let mut constraint = model
        .vocabulary
        .json(r#"{"type":"object","properties":{"z":{"const":1},"a":{"const":2}},"required":["a","z"],"additionalProperties":false}"#)
        .expect("a schema");
    let tokens = model.engine.tokenizer().tokenize(r#"{"z":1,"a":2}"#, false).expect("text");
    assert_eq!(constraint.accept_all(&tokens), Ok(()));
    assert!(constraint.is_complete());
}

#[test]
fn the_end_may_come_only_where_the_form_ends() {
    let model = Model::open();
    let end = model.engine.info().end_tokens[0];
    let mut constraint = model.constraint(&json!({ "type": "integer" }));
    assert!(!constraint.allowed().expect("digits").contains(end));
    constraint.accept(Token::from(b'7')).expect("a digit");
    assert!(!constraint.is_complete(), "more digits may follow");
    let allowed = constraint.allowed().expect("digits and ends");
    let ends = &model.engine.info().end_tokens;
    assert!(ends.iter().all(|end| allowed.contains(*end)), "any of the ends");
    assert!(allowed.contains(Token::from(b'0')) && !allowed.contains(Token::from(b'x')));
}

#[test]
fn what_does_not_follow_is_refused_with_its_place() {
    let model = Model::open();
    let tokens = |text: &str| model.engine.tokenizer().tokenize(text, false).expect("any text");
    let mut constraint = model.constraint(&json!({ "type": "object" }));
    assert_eq!(constraint.accept_all(&tokens(r#"{"a":[1,x"#)), Err(ConstraintError::Token { index: 8 }));
    let mut complete = model.constraint(&json!({ "type": "object" }));
    assert_eq!(complete.accept_all(&tokens("{}")), Ok(()));
    assert_eq!(complete.accept(Token::from(b' ')), Err(ConstraintError::Token { index: 2 }));
    let mut ended = model.constraint(&json!({ "type": "object" }));
    let end = model.engine.info().end_tokens[0];
    assert_eq!(ended.accept(end), Err(ConstraintError::Token { index: 0 }));
}

#[test]
fn a_run_that_goes_on_elsewhere_is_allowed_what_it_would_have_been() {
    let model = Model::open();
    let schema = &schemas()[4];
    let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
    let whole = model.tokens(schema, &sampling, 3);
    let mut first = model.constraint(schema);
    for cut in 0..whole.len() {
        let mut second = model.constraint(schema);
        second.accept_all(&whole[..cut]).expect("they were drawn");
        let (mine, theirs) = (first.allowed().expect("more"), second.allowed().expect("more"));
        assert!((0..model.engine.info().vocab).all(|token| mine.contains(token) == theirs.contains(token)));
        first.accept(whole[cut]).expect("it was drawn");
    }
}

#[test]
fn schemas_that_cannot_be_enforced_are_refused_with_the_reason() {
    let model = Model::open();
    for (schema, word) in [
        ("{", "JSON"),
        ("[]", "object"),
        (r#"{"type":"strnig"}"#, "strnig"),
        (r#"{"type":"array","uniqueItems":true}"#, "uniqueItems"),
        (r#"{"type":"integer","minimum":5,"maximum":4}"#, ""),
        (r##"{"$ref":"#/$defs/nowhere"}"##, ""),
        (r#"{"$ref":"https://example.com/schema.json"}"#, ""),
        (r#"{"type":"string","pattern":"(["}"#, ""),
        (r#"{"type":"array","uniqueItems":true,"x-guidance":{"lenient":true}}"#, "uniqueItems"),
    ] {
        let reason = model.refusal(schema);
        assert!(reason.contains(word) && !reason.is_empty(), "{schema}: {reason}");
        assert!(!reason.contains("backtrace") && !reason.contains('\n') && reason.len() < 1000, "{reason}");
    }
}

#[test]
fn deep_and_wide_schemas_are_taken_or_refused_but_never_break() {
    let model = Model::open();
    let deep = (0..60).fold(
        json!({ "type": "integer" }),
        |inner, _| json!({ "type": "object", "properties": { "a": inner }, "required": ["a"] }),
    );
    let _ = model.vocabulary.json(&deep.to_string());
    let wide: serde_json::Map<String, Value> =
        (0..400).map(|n| (format!("field{n}"), json!({ "type": "string", "maxLength": 400 }))).collect();
    let _ = model.vocabulary.json(&json!({ "type": "object", "properties": wide }).to_string());
    let _ = model.vocabulary.json(&json!({ "type": "string", "maxLength": 100_000_000u64 }).to_string());
    let _ = model.vocabulary.json(&json!({ "type": "array", "minItems": 100_000_000u64 }).to_string());
    let words = "\u{e9}".repeat(200);
    let _ = model.vocabulary.json(&json!({ "type": words, "enum": words }).to_string());
}

#[test]
fn recursion_by_reference_is_followed() {
    let model = Model::open();
    let schema = json!({
        "$defs": { "tree": {
            "type": "object",
            "properties": { "leaf": { "type": "boolean" }, "left": { "$ref": "#/$defs/tree" } },
            "required": ["leaf"],
            "additionalProperties": false
        } },
        "$ref": "#/$defs/tree"
    });
    let text = r#"{"leaf": true, "left": {"leaf":false}}"#;
    let tokens = model.engine.tokenizer().tokenize(text, false).expect("text");
    let mut constraint = model.constraint(&schema);
    assert_eq!(constraint.accept_all(&tokens), Ok(()));
    assert!(constraint.is_complete());
}
