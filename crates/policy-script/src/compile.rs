//! From a text to a policy, or to the reason why it is none.

use std::collections::BTreeMap;
use std::sync::Arc;

use orchestrator_core::policy::{FailureKind, Hook, Policy, PolicyFailure, Scripts};
use rhai::{AST, Dynamic, Engine, EvalAltResult, Position};

use crate::engine::engine;
use crate::failure::{failure, of_parsing};
use crate::limits::SOURCE_BYTES;
use crate::policy::ScriptPolicy;
use crate::watch::Watch;

/// The script language. Its policies run one at a time, under one [`Watch`].
pub struct Language {
    engine: Arc<Engine>,
    watch: Arc<Watch>,
}

impl std::fmt::Debug for Language {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Language").finish_non_exhaustive()
    }
}

impl Default for Language {
    fn default() -> Self {
        let watch = Arc::new(Watch::default());
        Self { engine: Arc::new(engine(Arc::clone(&watch))), watch }
    }
}

impl Language {
    /// What its policies are watched by.
    pub fn watch(&self) -> Arc<Watch> {
        Arc::clone(&self.watch)
    }

    /// Compiles a script.
    ///
    /// # Errors
    /// When it is too long, is no script of the language, breaks a limit, has statements outside
    /// functions, defines no hook, or a hook with the wrong parameters.
    pub fn compile(&self, name: &str, source: &str) -> Result<Arc<dyn Policy>, PolicyFailure> {
        if source.len() > SOURCE_BYTES {
            let message = format!("it has {} bytes; a script may have {SOURCE_BYTES}", source.len());
            let kind = FailureKind::Limit("source size".to_owned());
            return Err(failure(None, kind, message, Position::NONE));
        }
        let ast = self.engine.compile(source).map_err(|error| of_parsing(&error))?;
        only_functions(&ast)?;
        let hooks = hooks(&ast, source)?;
        Ok(Arc::new(ScriptPolicy::new(
            name,
            source,
            ast,
            hooks,
            Arc::clone(&self.engine),
            Arc::clone(&self.watch),
        )))
    }
}

impl Scripts for Language {
    fn compile(&self, name: &str, source: &str) -> Result<Arc<dyn Policy>, PolicyFailure> {
        self.compile(name, source)
    }
}

/// Statements outside functions would never run: an interpreter that stops before its first
/// operation tells where one is.
fn only_functions(ast: &AST) -> Result<(), PolicyFailure> {
    let mut stopped = Engine::new_raw();
    stopped.on_progress(|_| Some(Dynamic::UNIT));
    match stopped.run_ast(ast) {
        Ok(()) => Ok(()),
        Err(error) => {
            let at = match *error {
                EvalAltResult::ErrorTerminated(_, at) => at,
                ref other => other.position(),
            };
            let message = "statements outside functions never run; put it into a function, \
                           for example `fn first_hour() { 22 }`";
            Err(failure(None, FailureKind::Syntax, message, at))
        }
    }
}

/// The parameters of each hook, in the order of [`Hook::ALL`].
const PARAMETERS: [&str; 5] = ["job, queue", "job", "job, worker", "worker", "job, failure"];

/// The hooks that a script defines, and the line and column of each.
pub(crate) type Defined = BTreeMap<Hook, (u32, u32)>;

fn hooks(ast: &AST, source: &str) -> Result<Defined, PolicyFailure> {
    let mut found = Defined::new();
    for (hook, parameters) in Hook::ALL.into_iter().zip(PARAMETERS) {
        let wanted = parameters.split(", ").count();
        for function in ast.iter_functions().filter(|function| function.name == hook.name()) {
            let place = place_of(source, hook.name());
            let has = function.params.len();
            if has != wanted {
                let message = format!("`{hook}` takes ({parameters}); this one has {has} parameters");
                let wrong = failure(Some(hook), FailureKind::Syntax, message, Position::NONE);
                return Err(PolicyFailure { position: Some(place), ..wrong });
            }
            found.insert(hook, place);
        }
    }
    if !found.is_empty() {
        return Ok(found);
    }
    let message = "it defines none of the hooks admit(job, queue), order(job), score(job, worker), \
                   evict(worker), retry(job, failure)";
    Err(failure(None, FailureKind::Syntax, message, Position::NONE))
}

/// Line and column of `fn NAME`, from 1; the start of the script where it is not on one line.
fn place_of(source: &str, name: &str) -> (u32, u32) {
    for (number, line) in (1..).zip(source.lines()) {
        for (at, _) in line.match_indices("fn ") {
            let called = line.get(at + 3..).unwrap_or_default().trim_start();
            let rest = called.strip_prefix(name).map(str::trim_start);
            if rest.is_some_and(|rest| rest.starts_with('(')) {
                let column = line.get(..at).unwrap_or_default().chars().count() + 1;
                return (number, u32::try_from(column).unwrap_or(u32::MAX));
            }
        }
    }
    (1, 1)
}
