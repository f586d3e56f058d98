//! The same life twice: under the built-in policy, and under the default policy as a script. Every
//! decision of both must be the same.

use orchestrator_core::policy::PolicyText;
use orchestrator_core::{Step, Write};

use crate::plan::Plan;
use crate::world::World;

/// What came of two lives.
#[derive(Debug, Clone, PartialEq)]
pub struct Twins {
    /// Steps that both went.
    pub steps: u64,
    /// Placements among them.
    pub placements: u64,
    /// The first steps that differ.
    pub differ: Option<String>,
}

/// Lives both lives of a plan; `plan` gives it anew.
///
/// # Errors
/// Never for a world that can be built.
pub fn run_twins(seed: u64, plan: impl Fn(u64) -> Plan) -> anyhow::Result<Twins> {
    let scripted = PolicyText {
        name: "default-as-script".to_owned(),
        source: Some(policy_script::DEFAULT_SCRIPT.into()),
        sha256: "0".repeat(64),
    };
    let one = live(seed, plan(seed).under(PolicyText::built_in()))?;
    let other = live(seed, plan(seed).under(scripted))?;
    let differ = one
        .iter()
        .zip(&other)
        .find(|(one, other)| one != other)
        .map(|(one, other)| format!("built in: {one:?}\nas a script: {other:?}"))
        .or_else(|| (one.len() != other.len()).then(|| format!("{} and {} steps", one.len(), other.len())));
    let placed = |step: &Step| step.writes.iter().filter(|w| matches!(w, Write::PutDecision { .. })).count();
    let placements = one.iter().map(placed).sum::<usize>() as u64;
    Ok(Twins { steps: one.len() as u64, placements, differ })
}

/// Every step of a life. Whether promises are kept in it is another question.
fn live(seed: u64, plan: Plan) -> anyhow::Result<Vec<Step>> {
    let mut world = World::of(plan, seed, None, false)?;
    world.steps = Some(Vec::new());
    world.run();
    Ok(world.steps.unwrap_or_default().into_iter().map(without_scoring).collect())
}

/// A step without who scored, and without the terms that a script does not tell. What came out of
/// the scoring stays: the order of the candidates, the scores themselves, the choice.
fn without_scoring(mut step: Step) -> Step {
    step.writes.retain(|write| !matches!(write, Write::PutPolicies(_)));
    for write in &mut step.writes {
        if let Write::PutDecision { decision, .. } = write {
            decision.policy.clear();
            decision.counterfactual = None;
            decision.candidates.iter_mut().for_each(|candidate| candidate.terms = None);
        }
    }
    step
}
