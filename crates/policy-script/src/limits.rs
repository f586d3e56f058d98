//! Everything a script may use up. Set here and nowhere left to a default, because the library's
//! defaults differ between debug and release builds.

use rhai::Engine;

/// Bytes of a script.
pub const SOURCE_BYTES: usize = 64 * 1024;
/// Operations of one answer: all workers of one placement together, or one question of another kind.
pub const OPERATIONS: u64 = 100_000;
/// Functions that call one another.
pub const CALL_DEPTH: usize = 16;
/// Nesting of an expression outside functions.
pub const EXPRESSION_DEPTH: usize = 32;
/// Nesting of an expression in a function.
pub const FUNCTION_EXPRESSION_DEPTH: usize = 16;
/// Bytes of one text.
pub const TEXT_BYTES: usize = 64 * 1024;
/// Items of one array or object map.
pub const ITEMS: usize = 1_000;
/// Variables that are alive at one time.
pub const VARIABLES: usize = 200;
/// Functions of a script.
pub const FUNCTIONS: usize = 100;
/// Milliseconds after which the shell's watchdog stops an answer.
pub const WATCHDOG_MS: u64 = 50;

/// Sets all of them. Operations are counted by [`crate::Watch`] over a whole answer; the engine's own
/// count of one call is the second fence.
pub(crate) fn set(engine: &mut Engine) {
    engine.set_max_operations(OPERATIONS);
    engine.set_max_call_levels(CALL_DEPTH);
    engine.set_max_expr_depths(EXPRESSION_DEPTH, FUNCTION_EXPRESSION_DEPTH);
    engine.set_max_string_size(TEXT_BYTES);
    engine.set_max_array_size(ITEMS);
    engine.set_max_map_size(ITEMS);
    engine.set_max_variables(VARIABLES);
    engine.set_max_functions(FUNCTIONS);
    engine.set_max_strings_interned(256);
}
