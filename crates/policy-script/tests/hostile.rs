//! Scripts that mean harm or do not know better: each ends with a clear error that says where and
//! which limit, within its count, and the last good policy decides instead.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fmt::Write as _;

use orchestrator_core::policy::{
    FailureFacts, FailureKind, JobFacts, PolicyFailure, PolicyLog, PolicyRows, PolicySlot, PolicyText,
    QueueFacts, Score, WorkerLoad,
};
use policy_script::{DEFAULT_SCRIPT, Language};

/// What a script is to fail with.
enum Ends {
    /// At this limit.
    Limit(&'static str),
    /// Does not compile, saying this.
    Syntax(&'static str),
    /// Went wrong while it ran, saying this.
    Runtime(&'static str),
    /// Answered nonsense, saying this.
    Answer(&'static str),
}

use Ends::{Answer, Limit, Runtime, Syntax};

/// A body of `score`, as a script.
fn score(body: &str) -> String {
    format!("fn score(job, worker) {{ {body} }}")
}

fn repeated(start: &str, piece: &str, times: usize, end: &str) -> String {
    let mut body = start.to_owned();
    for _ in 0..times {
        body.push_str(piece);
    }
    body + end
}

fn many_functions() -> String {
    (0..200).fold(score("1"), |mut script, n| {
        let _ = write!(script, " fn f{n}() {{ {n} }}");
        script
    })
}

fn many_variables() -> String {
    let lets: String = (0..300).fold(String::new(), |mut lets, n| {
        let _ = write!(lets, "let v{n} = {n}; ");
        lets
    });
    score(&format!("{lets} 1"))
}

#[rustfmt::skip]
fn scripts() -> Vec<(&'static str, String, Ends)> {
    vec![
        // Time.
        ("endless loop", score("loop { }"), Limit("operations")),
        ("endless while", score("let n = 0; while true { n += 1; } n"), Limit("operations")),
        ("endless do", score("do { } until false; 1"), Limit("operations")),
        ("huge range", score("let n = 0; for i in 0..1000000000 { n = i; } n"), Limit("operations")),
        ("nested loops", score("let n = 0; for i in 0..1000 { for j in 0..1000 { n = j; } } n"), Limit("operations")),
        ("recursion", "fn f(n) { f(n + 1) } fn score(job, worker) { f(0) }".into(), Limit("call depth")),
        ("mutual recursion", "fn a() { b() } fn b() { a() } fn score(job, worker) { a() }".into(), Limit("call depth")),
        ("a hook that asks itself", score("score(job, worker)"), Limit("call depth")),
        ("fork of calls", "fn f(n) { if n > 14 { 1 } else { f(n + 1) + f(n + 1) } } fn score(job, worker) { f(0) }".into(), Limit("operations")),
        ("sleep", score("sleep(10); 1"), Runtime("may not sleep")),
        ("sleep in parts", score("sleep(0.5); 1"), Runtime("may not sleep")),
        ("busy sorting", score("let a = []; for i in 0..1000 { a.push(1000 - i); } for i in 0..1000 { a.sort(|x, y| y - x); } 1"), Limit("operations")),
        // Code out of texts, files, other scripts.
        ("eval", score("eval(\"1\")"), Syntax("eval")),
        ("eval by pointer", score("let f = Fn(\"eval\"); f.call(\"1\")"), Syntax("eval")),
        ("import", format!("import \"std\" as s; {}", score("1")), Syntax("import")),
        ("export", format!("{} export score;", score("1")), Syntax("export")),
        ("a clock", score("timestamp()"), Runtime("timestamp")),
        ("a random number", score("rand()"), Runtime("rand")),
        ("opening a file", score("open_file(\"/etc/passwd\")"), Runtime("open_file")),
        ("reading a variable of the machine", score("env(\"HOME\")"), Runtime("env")),
        ("parsing JSON", score("parse_json(\"{}\")"), Runtime("parse_json")),
        // Room.
        ("growing text", score("let s = \"x\"; loop { s += s; } 1"), Limit("size")),
        ("padded text", score("let s = \"x\"; s.pad(1000000, 'y'); 1"), Limit("size")),
        ("growing array", score("let a = []; loop { a.push(1); } 1"), Limit("size")),
        ("doubling array", score("let a = [1]; loop { a += a; } 1"), Limit("size")),
        ("padded array", score("let a = []; a.pad(1000000, 0); 1"), Limit("size")),
        ("nested arrays", score("let a = []; loop { a = [a]; } 1"), Limit("size")),
        ("arrays of arrays", score("let a = [1]; loop { a = [a, a, a, a, a, a, a, a]; } 1"), Limit("size")),
        ("growing map", score("let m = #{}; for i in 0..100000 { m[`k${i}`] = i; } 1"), Limit("operations")),
        ("long literal", score(&repeated("[", "1,", 2_000, "1].len()")), Limit("size")),
        ("long text literal", score(&format!("\"{}\".len", "x".repeat(66_000))), Limit("source size")),
        ("blob", score("blob(1000000000)"), Runtime("blob")),
        ("many variables", many_variables(), Limit("variables")),
        ("many functions", many_functions(), Limit("functions")),
        ("ten megabytes of source", format!("{} // {}", score("1"), "x".repeat(10_000_000)), Limit("source size")),
        ("text replaced to a great one", score("let s = \"x\"; s.pad(60000, 'x'); s.replace(\"x\", \"xxxxxxxxxxxxxxxx\"); s.len"), Limit("size")),
        // Depth.
        ("five thousand brackets", score(&format!("{}1{}", "(".repeat(5_000), ")".repeat(5_000))), Limit("expression depth")),
        ("nested array literals", score(&format!("{}1{}", "[".repeat(500), "]".repeat(500))), Limit("expression depth")),
        ("twenty thousand additions", score(&repeated("1", "+1", 20_000, "")), Limit("expression depth")),
        ("two hundred thousand additions", score(&repeated("1", "+1", 200_000, "")), Limit("source size")),
        ("negations", score(&format!("{}true", "!".repeat(5_000))), Limit("expression depth")),
        ("nested blocks", score(&format!("{}1{}", "{".repeat(2_000), "}".repeat(2_000))), Limit("expression depth")),
        ("nested ifs", score(&format!("{}1{}", "if true {".repeat(1_000), "}".repeat(1_000))), Limit("expression depth")),
        // Arithmetic.
        ("overflow", score("9223372036854775807 + worker.slots"), Runtime("overflow")),
        ("product overflow", score("let n = 9223372036854775807; n * n"), Runtime("overflow")),
        ("division by zero", score("1 / (worker.slots - worker.slots)"), Runtime("zero")),
        ("not a number", score("0.0 / (worker.prefix_share * 0.0)"), Answer("from 0 to 1000")),
        ("infinite", score("1.0 / (worker.prefix_share * 0.0)"), Answer("from 0 to 1000")),
        ("whole part of infinity", score("to_int(1.0 / (worker.prefix_share * 0.0))"), Runtime("no whole number")),
        ("power", score("2.0 ** 0.5"), Syntax("**")),
        // Answers.
        ("a text", score("\"best\""), Answer("answered best")),
        ("an array", score("[1, 2]"), Answer("from 0 to 1000")),
        ("the worker itself", score("worker"), Answer("from 0 to 1000")),
        ("a closure", score("|x| x"), Answer("from 0 to 1000")),
        ("negative", score("-1"), Answer("answered -1")),
        ("too good", score("1001"), Answer("answered 1001")),
        ("thrown", score("throw \"no\""), Runtime("no")),
        // Inputs.
        ("writes the worker", score("worker.slots_free = 100; 1"), Runtime("slots_free")),
        ("writes the job", score("job.priority = \"batch\"; 1"), Runtime("priority")),
        ("calls a setter", score("worker.set_slots(3); 1"), Runtime("set_slots")),
        ("reads what is not there", score("worker.id"), Runtime("id")),
        ("reads by index", score("worker[\"slots\"]"), Runtime("Indexer")),
        ("reads a job's secrets", score("job.prompt"), Runtime("prompt")),
        ("calls what is not there", score("kill_worker(worker)"), Runtime("kill_worker")),
        ("an unknown variable", score("wrker.slots"), Syntax("wrker")),
        // Form.
        ("nothing", String::new(), Syntax("none of the hooks")),
        ("other functions only", "fn rank(a) { 1 }".into(), Syntax("none of the hooks")),
        ("wrong parameters", "fn score(worker) { 1 }".into(), Syntax("takes (job, worker)")),
        ("a statement that never runs", format!("let x = 1;\n{}", score("1")), Syntax("outside functions")),
        ("unclosed", "fn score(job, worker) { 1".into(), Syntax("Expecting")),
        ("binary", "\u{0}\u{1}\u{2}fn score".into(), Syntax("")),
        ("print flood", score("for i in 0..1000000 { print(i); } 1"), Syntax("print")),
        ("debug flood", score("for i in 0..1000000 { debug(i); } 1"), Syntax("debug")),
    ]
}

fn text(name: &str, source: &str) -> PolicyText {
    PolicyText { name: name.to_owned(), source: Some(source.into()), sha256: String::new() }
}

fn load(slots_free: u32) -> WorkerLoad<'static> {
    WorkerLoad { backend: "fake", slots: 4, slots_free, ..WorkerLoad::default() }
}

/// Compiles and, where that works, asks.
fn fails(source: &str) -> PolicyFailure {
    let policy = match Language::default().compile("hostile", source) {
        Ok(policy) => policy,
        Err(failure) => return failure,
    };
    let answer = policy.score(&JobFacts::default(), &[load(1), load(2)], &mut Vec::new());
    match answer {
        Err(failure) => failure,
        Ok(()) => PolicyFailure {
            hook: None,
            kind: FailureKind::Runtime,
            message: "it answered".to_owned(),
            position: None,
        },
    }
}

#[test]
fn every_hostile_script_ends_with_its_error_and_its_place() {
    let scripts = scripts();
    assert!(scripts.len() >= 40, "{}", scripts.len());
    let mut wrong = String::new();
    for (what, source, ends) in scripts {
        let failure = fails(&source);
        let fits = match &ends {
            Limit(limit) => failure.kind == FailureKind::Limit((*limit).to_owned()),
            Syntax(says) => failure.kind == FailureKind::Syntax && failure.message.contains(says),
            Runtime(says) => failure.kind == FailureKind::Runtime && failure.message.contains(says),
            Answer(says) => failure.kind == FailureKind::WrongAnswer && failure.message.contains(says),
        };
        let placed = failure.position.is_some()
            || failure.message.contains("hooks")
            || failure.kind == FailureKind::Limit("source size".to_owned())
            || failure.kind == FailureKind::Limit("functions".to_owned());
        if !fits || !placed {
            let _ = writeln!(wrong, "{what}: {failure} ({:?})", failure.kind);
        }
    }
    assert_eq!(wrong, "");
}

#[test]
fn behind_every_hostile_script_the_last_good_policy_decides() {
    let language = std::sync::Arc::new(Language::default());
    for (what, source, _) in scripts() {
        let rows = PolicyRows {
            live: text(what, &source),
            last_good: Some(text("good", "fn score(job, worker) { 10 - worker.slots_free }")),
            ..PolicyRows::default()
        };
        let slot = PolicySlot::new(rows, std::sync::Arc::clone(&language) as _);
        let mut log = PolicyLog::default();
        let (scores, by) = slot.score(&JobFacts::default(), &[load(1), load(3)], &mut log);
        assert_eq!((scores, by), (vec![Score::Points(9.0), Score::Points(7.0)], "good"), "{what}");
        assert_eq!(log.failures.len(), 1, "{what}");
    }
}

#[test]
fn hooks_of_every_kind_are_bounded_and_checked() {
    let language = Language::default();
    let hooks = "fn admit(job, queue) { loop { } } fn order(job) { 1.5 } \
                 fn evict(worker) { 0.0 / 0.0 } fn retry(job, failure) { \"perhaps\" }";
    let policy = language.compile("bad", hooks).expect("it compiles");
    let job = JobFacts::default();
    let failure = FailureFacts { code: "WORKER_LOST", workers_lost: 1, attempts: 5 };
    let admit = policy.admit(&job, &QueueFacts::default()).expect_err("endless");
    assert_eq!(admit.kind, FailureKind::Limit("operations".to_owned()));
    assert_eq!(admit.position, Some((1, 1)));
    for wrong in [
        policy.order(&job).map(drop).expect_err("not whole"),
        policy.evict(&load(1)).map(drop).expect_err("not a number"),
        policy.retry(&job, &failure).map(drop).expect_err("not a yes or no"),
    ] {
        assert_eq!(wrong.kind, FailureKind::WrongAnswer, "{wrong}");
    }
}

#[test]
fn operations_are_counted_over_all_workers_and_equal_facts_cost_the_same_again() {
    // About 20,000 operations for each worker: five fit into an answer, six do not.
    let source = score("let n = 0; while n < 3000 { n += 1; } worker.slots_free");
    let fits = |policy: &dyn orchestrator_core::policy::Policy, workers: u32| {
        let loads: Vec<_> = (1..=workers).map(load).collect();
        policy.score(&JobFacts::default(), &loads, &mut Vec::new()).is_ok()
    };
    let language = Language::default();
    let cold = language.compile("counted", &source).expect("it compiles");
    let most = (1..32).find(|n| !fits(&*cold, *n)).expect("some number is too many");
    assert!(most > 2, "{most}");
    // `cold` remembers the scores of all these workers by now. What it remembers costs as much.
    let fresh = language.compile("counted", &source).expect("it compiles");
    for workers in 1..=most {
        assert_eq!(fits(&*cold, workers), fits(&*fresh, workers), "{workers} workers");
    }
    assert!(!fits(&*cold, most) && fits(&*cold, most - 1));
}

#[test]
fn the_watchdog_stops_an_answer_and_the_next_one_is_whole() {
    let language = Language::default();
    let source = score("let n = job.waited_ms; while n < 1000000 { n += 1; } 1");
    let policy = language.compile("slow", &source).expect("it compiles");
    let watch = language.watch();
    let stopper = std::thread::spawn({
        let watch = language.watch();
        move || {
            loop {
                match watch.answering() {
                    Some(answer) => return watch.stop(answer),
                    None => std::thread::yield_now(),
                }
            }
        }
    });
    // Each answer would run out of operations; the one that the stopper saw ends before that.
    let mut kinds = Vec::new();
    for waited_ms in 0..10_000 {
        let job = JobFacts { waited_ms, ..JobFacts::default() };
        let failure = policy.score(&job, &[load(1)], &mut Vec::new()).expect_err("it is endless");
        kinds.push(failure.kind);
        if stopper.is_finished() && kinds.contains(&FailureKind::Interrupted) {
            break;
        }
    }
    stopper.join().expect("it stopped one");
    let cut = kinds.iter().filter(|kind| **kind == FailureKind::Interrupted).count();
    assert!(cut <= 1, "{kinds:?}");
    assert_eq!(watch.answering(), None);
    let quick = JobFacts { waited_ms: 1_000_000, ..JobFacts::default() };
    assert!(policy.score(&quick, &[load(1)], &mut Vec::new()).is_ok());
}

#[test]
fn the_default_script_breaks_no_limit_with_as_many_workers_as_a_placement_shows() {
    let policy = Language::default().compile("default", DEFAULT_SCRIPT).expect("it compiles");
    let loads = vec![load(3); orchestrator_core::policy::MAX_SCORED];
    policy.score(&JobFacts::default(), &loads, &mut Vec::new()).expect("it answers");
}
