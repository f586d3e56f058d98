//! The interpreter with nothing in it that could surprise: no modules, no files, no clock, no
//! printing, no evaluation of texts, and only such arithmetic as every machine does alike.

use std::sync::Arc;

use rhai::packages::{
    ArithmeticPackage, BasicArrayPackage, BasicFnPackage, BasicIteratorPackage, BasicMapPackage,
    BasicStringPackage, LogicPackage, MoreStringPackage, Package,
};
use rhai::{Dynamic, Engine, EvalAltResult, OptimizationLevel, Position};

use crate::watch::{Stop, Watch};
use crate::{facts, limits};

/// What [`Stop::Operations`] ends a run with.
pub(crate) const OUT_OF_OPERATIONS: &str = "operations";
/// What [`Stop::Watchdog`] ends a run with.
pub(crate) const CUT: &str = "watchdog";

/// Words of the language that no policy has use for.
const FORBIDDEN: [&str; 7] = ["eval", "import", "export", "print", "debug", "**", "try"];

/// An interpreter whose runs are counted by `watch`.
pub(crate) fn engine(watch: Arc<Watch>) -> Engine {
    let mut engine = Engine::new_raw();
    ArithmeticPackage::new().register_into_engine(&mut engine);
    LogicPackage::new().register_into_engine(&mut engine);
    BasicFnPackage::new().register_into_engine(&mut engine);
    BasicIteratorPackage::new().register_into_engine(&mut engine);
    BasicStringPackage::new().register_into_engine(&mut engine);
    MoreStringPackage::new().register_into_engine(&mut engine);
    BasicArrayPackage::new().register_into_engine(&mut engine);
    BasicMapPackage::new().register_into_engine(&mut engine);
    limits::set(&mut engine);
    for word in FORBIDDEN {
        engine.disable_symbol(word);
    }
    engine.set_optimization_level(OptimizationLevel::Simple);
    engine.set_strict_variables(true);
    engine.set_fail_on_invalid_map_property(false);
    engine.on_print(|_| {});
    engine.on_debug(|_, _, _| {});
    engine.on_progress(move |_| {
        watch.operation().map(|stop| {
            Dynamic::from(match stop {
                Stop::Operations => OUT_OF_OPERATIONS,
                Stop::Watchdog => CUT,
            })
        })
    });
    register_numbers(&mut engine);
    register_sleep(&mut engine);
    facts::register(&mut engine);
    engine
}

/// The functions on numbers that IEEE 754 defines to the last bit.
fn register_numbers(engine: &mut Engine) {
    engine
        .register_fn("floor", f64::floor)
        .register_fn("ceiling", f64::ceil)
        .register_fn("round", f64::round)
        .register_fn("sqrt", f64::sqrt)
        .register_fn("to_float", |number: i64| number as f64)
        .register_fn("to_float", |number: f64| number)
        .register_fn("to_int", |number: i64| number)
        .register_fn("to_int", to_int)
        .register_fn("clamp", |number: i64, least: i64, most: i64| number.min(most).max(least))
        .register_fn("clamp", |number: f64, least: f64, most: f64| number.min(most).max(least));
}

fn to_int(number: f64) -> Result<i64, Box<EvalAltResult>> {
    if number.is_finite() && number.abs() < 9.0e18 {
        return Ok(number as i64);
    }
    Err(arithmetic(format!("{number} has no whole number")))
}

fn arithmetic(message: String) -> Box<EvalAltResult> {
    Box::new(EvalAltResult::ErrorArithmetic(message, Position::NONE))
}

/// `sleep` is in no package used here. Named all the same, so that the error says why.
fn register_sleep(engine: &mut Engine) {
    engine
        .register_fn("sleep", |_: i64| no_sleep())
        .register_fn("sleep", |_: f64| no_sleep())
        .register_fn("sleep", no_sleep);
}

fn no_sleep() -> Result<(), Box<EvalAltResult>> {
    let message = "a policy may not sleep: the brain waits for its answer";
    Err(Box::new(EvalAltResult::ErrorRuntime(message.into(), Position::NONE)))
}
