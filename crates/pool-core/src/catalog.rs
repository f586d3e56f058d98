//! The catalog as a value: registering, marking, unregistering are edits of it.

use api_types::pool::{CatalogModel, ModelFile};
use api_types::{ErrorCode, ErrorDetail};
use serde::{Deserialize, Serialize};

use crate::reference::{is_catalog_id, is_repo, is_sha256};
use crate::spawn::ModelChoice;
use crate::{ModelRef, nearest, shipped};

/// The form of `catalog.json` that this build writes.
pub const VERSION: u32 = 1;

/// The format of an entry that is the engine's built-in stand-in.
pub const STAND_IN: &str = "fake";

/// What `models/catalog.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalog {
    /// Form of the file; another one is refused.
    pub version: u32,
    /// The models, in the order they were registered.
    pub models: Vec<CatalogModel>,
}

/// What somebody says about a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registration {
    /// The id it gets.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// `org/name` of the Hub, or any reference.
    pub repo: String,
    /// For example `llama`.
    pub architecture: String,
    /// The file inside the repository; chosen at download when absent.
    pub file: Option<String>,
    /// What the bytes must hash to, where it is known beforehand.
    pub sha256: Option<String>,
}

/// What a finished download learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Downloaded {
    /// The commit the files were pinned to.
    pub revision: Option<String>,
    /// The files, with size and sha256.
    pub files: Vec<ModelFile>,
    /// `gguf` or `safetensors`.
    pub format: String,
    /// From the file's header, where it has one.
    pub architecture: Option<String>,
    /// From the file's header, where it has one.
    pub quantization: Option<String>,
    /// From the file's header, where it has one.
    pub context_length: Option<u32>,
}

/// Whether a registration made an entry or changed one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registered {
    /// There was no such id.
    Created,
    /// The entry has changed and its files are still those of the same repository.
    Updated,
    /// The entry names another repository now and is to be downloaded again.
    Replaced,
}

impl Catalog {
    /// What a fresh home starts with.
    pub fn shipped() -> Self {
        Self { version: VERSION, models: shipped::models() }
    }

    /// The entry of an id or alias.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND`, with the nearest known id.
    pub fn find(&self, id: &str) -> Result<&CatalogModel, ErrorDetail> {
        self.models.iter().find(|model| answers_to(model, id)).ok_or_else(|| self.unknown(id))
    }

    /// The entry that can be fetched from this reference.
    pub fn find_by_source(&self, reference: &ModelRef) -> Option<&CatalogModel> {
        let text = reference.to_string();
        self.models.iter().find(|model| model.sources.contains(&text))
    }

    /// Makes an entry, or changes the one with this id; the same repository keeps `downloaded`.
    ///
    /// # Errors
    /// `INVALID_FIELD` for an id that is no name or that is another entry's alias, and
    /// `INVALID_MODEL_REF` for a repository that is no reference.
    pub fn register(&mut self, new: &Registration) -> Result<Registered, ErrorDetail> {
        let source = check(new)?;
        if let Some(other) = self.models.iter().find(|m| m.id != new.id && answers_to(m, &new.id)) {
            let message =
                format!("`{}` is already another name of `{}`; choose another id", new.id, other.id);
            return Err(ErrorDetail::new(ErrorCode::InvalidField, message).with_field("id"));
        }
        let fresh = entry(new, &source);
        match self.models.iter_mut().find(|model| model.id == new.id) {
            Some(old) => Ok(update(old, fresh)),
            None => {
                self.models.push(fresh);
                Ok(Registered::Created)
            }
        }
    }

    /// Records that every file of a model is there and verified.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND`.
    pub fn mark_downloaded(&mut self, id: &str, found: Downloaded) -> Result<&CatalogModel, ErrorDetail> {
        let model = self.find_mut(id)?;
        model.size_bytes = found.files.iter().filter_map(|file| file.size).sum();
        model.revision = found.revision;
        model.files = found.files;
        model.format = found.format;
        model.architecture = found.architecture.unwrap_or_else(|| model.architecture.clone());
        model.quantization = found.quantization.or_else(|| model.quantization.take());
        model.context_length = found.context_length.or(model.context_length);
        model.downloaded = true;
        Ok(model)
    }

    /// Records that a model's files are not all there; what they must hash to stays.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND`.
    pub fn mark_missing(&mut self, id: &str) -> Result<&CatalogModel, ErrorDetail> {
        let model = self.find_mut(id)?;
        model.downloaded = false;
        Ok(model)
    }

    /// Takes an entry out; its files stay.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND`.
    pub fn unregister(&mut self, id: &str) -> Result<CatalogModel, ErrorDetail> {
        let at =
            self.models.iter().position(|model| answers_to(model, id)).ok_or_else(|| self.unknown(id))?;
        Ok(self.models.remove(at))
    }

    /// The model that is meant when none is named: the only one whose files are here.
    ///
    /// # Errors
    /// `MODEL_NOT_READY` when nothing is downloaded, `MODEL_AMBIGUOUS` with the list when more is.
    pub fn only_downloaded(&self) -> Result<&CatalogModel, ErrorDetail> {
        let ready: Vec<&CatalogModel> = self.models.iter().filter(|model| model.downloaded).collect();
        match ready.as_slice() {
            [only] => Ok(only),
            [] => Err(ErrorDetail::new(ErrorCode::ModelNotReady, "no model is downloaded on this machine")
                .with_hint("rbees-pool models download smollm2-135m")),
            many => {
                let ids: Vec<&str> = many.iter().map(|model| model.id.as_str()).collect();
                let message =
                    format!("more than one model is downloaded, so name one of: {}", ids.join(", "));
                Err(ErrorDetail::new(ErrorCode::ModelAmbiguous, message)
                    .with_field("model")
                    .with_hint(format!("add --model {}", ids.first().unwrap_or(&"ID"))))
            }
        }
    }

    fn find_mut(&mut self, id: &str) -> Result<&mut CatalogModel, ErrorDetail> {
        let error = self.unknown(id);
        self.models.iter_mut().find(|model| answers_to(model, id)).ok_or(error)
    }

    fn unknown(&self, id: &str) -> ErrorDetail {
        let known =
            self.models.iter().flat_map(|m| [&m.id].into_iter().chain(&m.aliases)).map(String::as_str);
        let shown: String = id.chars().filter(|c| !c.is_control()).take(80).collect();
        let meant = nearest(id, known).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        ErrorDetail::new(ErrorCode::ModelNotFound, format!("the catalog has no model `{shown}`{meant}"))
            .with_field("model")
            .with_hint("list the known models: rbees-pool models catalog")
    }
}

fn answers_to(model: &CatalogModel, id: &str) -> bool {
    model.id == id || model.aliases.iter().any(|alias| alias == id)
}

/// Checks the texts and gives the source they name.
fn check(new: &Registration) -> Result<ModelRef, ErrorDetail> {
    let refuse = |field: &str, message: &str| {
        Err(ErrorDetail::new(ErrorCode::InvalidField, message).with_field(field))
    };
    if !is_catalog_id(&new.id) {
        return refuse("id", "an id has 1 to 64 characters of A-Z, a-z, 0-9, `.`, `_` and `-`");
    }
    if new.name.is_empty() || new.name.len() > 200 || new.name.chars().any(char::is_control) {
        return refuse("name", "a name has 1 to 200 bytes and no control characters");
    }
    if !is_catalog_id(&new.architecture) {
        return refuse("architecture", "an architecture is a word such as `llama` or `qwen2`");
    }
    if new.sha256.as_deref().is_some_and(|hex| !is_sha256(hex)) {
        return refuse("sha256", "a sha256 has 64 lower-case hex digits");
    }
    source(new)
}

fn source(new: &Registration) -> Result<ModelRef, ErrorDetail> {
    let text = if is_repo(&new.repo) { format!("hf:{}", new.repo) } else { new.repo.clone() };
    let reference: ModelRef = text.parse()?;
    match (reference, &new.file) {
        (ModelRef::Catalog(_), _) => Err(ErrorDetail::new(
            ErrorCode::InvalidModelRef,
            format!("`{}` is no place to fetch a model from; give org/name or a reference", new.repo),
        )
        .with_field("repo")),
        (ModelRef::Hub { repo, revision, file: None }, Some(file)) => {
            ModelRef::Hub { repo, revision, file: Some(file.clone()) }.to_string().parse()
        }
        (_, Some(_)) => Err(ErrorDetail::new(
            ErrorCode::InvalidField,
            "--file goes with an org/name repository; this reference names its file itself",
        )
        .with_field("file")),
        (reference, None) => Ok(reference),
    }
}

fn entry(new: &Registration, source: &ModelRef) -> CatalogModel {
    let pinned = match source {
        ModelRef::Https { sha256, .. } => Some(sha256.clone()),
        ModelRef::Fake(_) => return stand_in(new, source),
        ModelRef::Hub { .. } | ModelRef::File { .. } | ModelRef::Pypi(_) | ModelRef::Catalog(_) => {
            new.sha256.clone()
        }
    };
    let file = |name: &str| ModelFile { path: name.to_owned(), size: None, sha256: pinned.clone() };
    CatalogModel {
        id: new.id.clone(),
        name: new.name.clone(),
        aliases: Vec::new(),
        repo: shipped::repo_of(&source.to_string()),
        revision: None,
        files: source.file_name().map(file).into_iter().collect(),
        architecture: new.architecture.clone(),
        format: "gguf".to_owned(),
        quantization: None,
        context_length: None,
        downloaded: false,
        size_bytes: 0,
        sources: vec![source.to_string()],
    }
}

/// The entry of a stand-in: there is nothing to fetch, and its size is what it says of its memory.
fn stand_in(new: &Registration, source: &ModelRef) -> CatalogModel {
    let text = source.to_string();
    CatalogModel {
        id: new.id.clone(),
        name: new.name.clone(),
        aliases: Vec::new(),
        repo: text.clone(),
        revision: None,
        files: Vec::new(),
        architecture: new.architecture.clone(),
        format: STAND_IN.to_owned(),
        quantization: None,
        context_length: None,
        downloaded: true,
        size_bytes: ModelChoice::fake(&text).map_or(0, |choice| choice.stated_bytes()),
        sources: vec![text],
    }
}

fn update(old: &mut CatalogModel, fresh: CatalogModel) -> Registered {
    if old.sources.contains(fresh.sources.first().unwrap_or(&String::new())) || same_repo(old, &fresh) {
        old.name = fresh.name;
        old.architecture = fresh.architecture;
        return Registered::Updated;
    }
    let aliases = std::mem::take(&mut old.aliases);
    *old = CatalogModel { aliases, ..fresh };
    Registered::Replaced
}

/// Whether a registration names what the entry already comes from, without asking for another file.
fn same_repo(old: &CatalogModel, fresh: &CatalogModel) -> bool {
    old.repo == fresh.repo && fresh.files.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registration(id: &str, repo: &str) -> Registration {
        Registration {
            id: id.into(),
            name: "A model".into(),
            repo: repo.into(),
            architecture: "llama".into(),
            ..Registration::default()
        }
    }

    fn found() -> Downloaded {
        Downloaded {
            revision: Some("c0ffee".into()),
            files: vec![ModelFile { path: "x.gguf".into(), size: Some(7), sha256: Some("a".repeat(64)) }],
            format: "gguf".into(),
            architecture: None,
            quantization: Some("Q8_0".into()),
            context_length: Some(512),
        }
    }

    #[test]
    fn a_fresh_catalog_knows_six_models_and_an_alias() {
        let catalog = Catalog::shipped();
        let ids: Vec<&str> = catalog.models.iter().map(|model| model.id.as_str()).collect();
        assert_eq!(ids, ["tinyllama", "qwen-0.5b", "phi3", "mistral", "llama3-8b", "smollm2-135m"]);
        assert_eq!(catalog.find("llama3").expect("alias").id, "llama3-8b");
        assert!(catalog.models.iter().all(|model| !model.downloaded));
    }

    #[test]
    fn registering_again_keeps_downloaded_for_the_same_repository_only() {
        let mut catalog = Catalog::shipped();
        assert_eq!(catalog.register(&registration("mine", "org/repo")), Ok(Registered::Created));
        catalog.mark_downloaded("mine", found()).expect("known");
        assert_eq!(catalog.register(&registration("mine", "org/repo")), Ok(Registered::Updated));
        assert!(catalog.find("mine").expect("known").downloaded);
        assert_eq!(catalog.register(&registration("mine", "org/other")), Ok(Registered::Replaced));
        let model = catalog.find("mine").expect("known");
        assert!(!model.downloaded && model.files.is_empty() && model.revision.is_none());
    }

    #[test]
    fn marking_takes_sizes_and_header_facts_over() {
        let mut catalog = Catalog::shipped();
        let model = catalog.mark_downloaded("llama3", found()).expect("known").clone();
        assert_eq!((model.size_bytes, model.quantization.as_deref()), (7, Some("Q8_0")));
        assert_eq!((model.context_length, model.architecture.as_str()), (Some(512), "llama"));
        assert!(!catalog.mark_missing("llama3").expect("known").downloaded);
    }

    #[test]
    fn an_unknown_id_is_answered_with_the_nearest() {
        let error = Catalog::shipped().find("smollm2-135").expect_err("unknown");
        assert_eq!(error.code, ErrorCode::ModelNotFound);
        assert!(error.message.contains("did you mean `smollm2-135m`"), "{}", error.message);
    }

    #[test]
    fn bad_registrations_name_the_field() {
        let mut catalog = Catalog::shipped();
        let rows = [
            (registration("../x", "org/repo"), "id"),
            (registration("llama3", "org/repo"), "id"),
            (registration("x", "tinyllama"), "repo"),
            (Registration { name: "\u{1b}".into(), ..registration("x", "org/repo") }, "name"),
            (Registration { sha256: Some("zz".into()), ..registration("x", "org/repo") }, "sha256"),
            (Registration { file: Some("a".into()), ..registration("x", "file:/a") }, "file"),
        ];
        for (new, field) in rows {
            let error = catalog.register(&new).expect_err(field);
            assert_eq!(error.field.as_deref(), Some(field), "{error:?}");
        }
        assert_eq!(catalog, Catalog::shipped());
    }

    #[test]
    fn the_only_downloaded_model_is_meant_when_none_is_named() {
        let mut catalog = Catalog::shipped();
        assert_eq!(catalog.only_downloaded().expect_err("none").code, ErrorCode::ModelNotReady);
        catalog.mark_downloaded("phi3", found()).expect("known");
        assert_eq!(catalog.only_downloaded().expect("one").id, "phi3");
        catalog.mark_downloaded("mistral", found()).expect("known");
        let error = catalog.only_downloaded().expect_err("two");
        assert!(error.message.contains("phi3, mistral"));
    }

    #[test]
    fn unregistering_removes_the_entry_alone() {
        let mut catalog = Catalog::shipped();
        assert_eq!(catalog.unregister("llama3").expect("known").id, "llama3-8b");
        assert_eq!(catalog.models.len(), 5);
        assert!(catalog.unregister("llama3").is_err());
    }
}
