//! Which model a request means, and what to say when none fits.

use std::collections::{BTreeMap, BTreeSet};

use api_types::{ErrorCode, ErrorDetail, PoolId};
use serde_json::json;

use crate::event::PoolModel;
use crate::orchestrator::Orchestrator;

/// Names longer than this are not compared letter by letter.
const COMPARED_CHARS: usize = 128;
/// Names that a refusal lists.
const LISTED_NAMES: usize = 20;

/// What each pool said it has.
pub(crate) type Catalogs = BTreeMap<PoolId, Vec<PoolModel>>;

impl Orchestrator {
    /// The id of the model that a request means: the one named, by id or alias, or the only one.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND` with the nearest known name, `MODEL_NOT_READY` when its files are not
    /// there, `MODEL_AMBIGUOUS` when none is named and not exactly one can be meant.
    pub fn resolve_model(&self, name: Option<&str>) -> Result<String, ErrorDetail> {
        match name {
            Some(name) => self.resolve_name(name),
            None => self.only_model(),
        }
    }

    fn resolve_name(&self, name: &str) -> Result<String, ErrorDetail> {
        let id = self.catalog_id(name).unwrap_or(name);
        if self.runs_model(id) || self.is_downloaded(id) {
            return Ok(id.to_owned());
        }
        match self.pool_that_knows(id) {
            Some(pool) => Err(not_downloaded(id, pool)),
            None => Err(self.not_found(name)),
        }
    }

    /// The id behind an alias. A model that a worker runs under this very name goes first.
    fn catalog_id(&self, name: &str) -> Option<&str> {
        if self.runs_model(name) {
            return None;
        }
        let models = || self.catalogs.values().flatten();
        models()
            .find(|model| model.id == name)
            .or_else(|| models().find(|model| model.aliases.iter().any(|alias| alias == name)))
            .map(|model| model.id.as_str())
    }

    fn runs_model(&self, id: &str) -> bool {
        self.registry.of_model(id).next().is_some()
    }

    fn is_downloaded(&self, id: &str) -> bool {
        self.catalogs.values().flatten().any(|model| model.id == id && model.downloaded)
    }

    fn pool_that_knows(&self, id: &str) -> Option<&PoolId> {
        self.catalogs
            .iter()
            .find(|(_, models)| models.iter().any(|model| model.id == id))
            .map(|(pool, _)| pool)
    }

    /// The only model that workers run; while none runs, the only one that pools have.
    fn only_model(&self) -> Result<String, ErrorDetail> {
        let running: BTreeSet<&str> = self.registry.models().map(|(model, _)| model.as_str()).collect();
        let downloaded = || self.catalogs.values().flatten().filter(|model| model.downloaded);
        let candidates =
            if running.is_empty() { downloaded().map(|model| model.id.as_str()).collect() } else { running };
        match candidates.first() {
            Some(only) if candidates.len() == 1 => Ok((*only).to_owned()),
            _ => Err(not_one(&candidates)),
        }
    }

    fn not_found(&self, name: &str) -> ErrorDetail {
        let known = self.known_names();
        let nearest = nearest(name, &known);
        let listed: Vec<&str> = known.iter().take(LISTED_NAMES).copied().collect();
        let shown: String = name.chars().take(COMPARED_CHARS).collect();
        let message = if listed.is_empty() {
            format!(
                "The model `{shown}` is not known: there is no worker, and no pool has told of its models."
            )
        } else {
            format!("The model `{shown}` is not known. Known are: {}.", listed.join(", "))
        };
        let hint = match nearest {
            Some(nearest) => format!("Did you mean `{nearest}`?"),
            None => "See `rbees status` for what runs, or start a worker with `rbees pool worker spawn --model MODEL`."
                .to_owned(),
        };
        ErrorDetail::new(ErrorCode::ModelNotFound, message)
            .with_field("model")
            .with_details(json!({ "nearest": nearest, "known": listed }))
            .with_hint(hint)
    }

    fn known_names(&self) -> BTreeSet<&str> {
        let running = self.registry.models().map(|(model, _)| model.as_str());
        let catalogued = self.catalogs.values().flatten().map(|model| model.id.as_str());
        running.chain(catalogued).collect()
    }
}

fn not_downloaded(id: &str, pool: &PoolId) -> ErrorDetail {
    ErrorDetail::new(
        ErrorCode::ModelNotReady,
        format!("The model `{id}` is in the catalog of the pool `{pool}`, but its files are not there yet."),
    )
    .with_field("model")
    .with_details(json!({ "pool": pool.as_str() }))
    .with_hint(format!("Download it with `rbees pool models download {id} --host {pool}`."))
}

fn not_one(candidates: &BTreeSet<&str>) -> ErrorDetail {
    let listed: Vec<&str> = candidates.iter().take(LISTED_NAMES).copied().collect();
    let (message, hint) = if listed.is_empty() {
        (
            "The request names no model, and no worker runs one.".to_owned(),
            "Start a worker with `rbees pool worker spawn --model MODEL`, or run `rbees up`.",
        )
    } else {
        (
            format!("The request names no model, and more than one can be served: {}.", listed.join(", ")),
            "Name one of them in `model`.",
        )
    };
    ErrorDetail::new(ErrorCode::ModelAmbiguous, message)
        .with_field("model")
        .with_details(json!({ "known": listed }))
        .with_hint(hint)
}

/// The known name with the fewest edits, if few enough that a slip of the hand explains them.
fn nearest<'a>(name: &str, known: &BTreeSet<&'a str>) -> Option<&'a str> {
    let wanted: Vec<char> = name.chars().take(COMPARED_CHARS).flat_map(char::to_lowercase).collect();
    let tolerated = (wanted.len() / 3).max(2);
    known
        .iter()
        .map(|known| (edits(&wanted, known), *known))
        .filter(|(edits, _)| *edits <= tolerated)
        .min()
        .map(|(_, known)| known)
}

/// Insertions, deletions and replacements between two names (Levenshtein's distance).
fn edits(a: &[char], b: &str) -> usize {
    let b: Vec<char> = b.chars().take(COMPARED_CHARS).flat_map(char::to_lowercase).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.iter().enumerate() {
        let mut diagonal = i;
        let mut before = i + 1;
        let mut next = vec![before];
        for (right, above) in b.iter().zip(row.iter().skip(1)) {
            let replaced = diagonal + usize::from(left != right);
            before = replaced.min(above + 1).min(before + 1);
            diagonal = *above;
            next.push(before);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted_and_far_names_are_not_suggested() {
        let chars = |text: &str| text.chars().collect::<Vec<_>>();
        for (a, b, count) in
            [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("Llama3", "llama3", 1)]
        {
            assert_eq!(edits(&chars(a), b), count, "{a} {b}");
        }
        let known = BTreeSet::from(["smollm2-135m", "llama3-8b"]);
        assert_eq!(nearest("smolm2-135m", &known), Some("smollm2-135m"));
        assert_eq!(nearest("gpt-oss-120b", &known), None);
    }
}
