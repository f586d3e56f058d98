//! The façade: everything that a pool can be asked for.

use std::path::{Path, PathBuf};
use std::time::Duration;

use api_types::pool::{CatalogModel, Fit, Hardware, PoolStatus, SpawnRequest, WorkerRecord};
use api_types::worker::WorkerCapabilities;
use api_types::{ErrorCode, ErrorDetail, PROTOCOL, WorkerId};
use gguf::Header;
use pool_core::catalog::{Registered, STAND_IN};
use pool_core::fit::{self, Load, Room, Shape};
use pool_core::reconcile::{self, Action};
use pool_core::spawn::{Device, ENV_ORCHESTRATOR_TOKEN, Facts, ModelChoice, SpawnPlan, plan};
use pool_core::worker_record::{self, STOP_GRACE_MS};
use pool_core::{Catalog, ModelRef, Registration};

use crate::download::{Downloader, Limits};
use crate::errors::{blocking, internal, storage};
use crate::files::Lock;
use crate::home::Home;
use crate::hub::HubSettings;
use crate::models::Verified;
use crate::{OnProgress, budget, catalog_file, facts, models, records, spawn, stop, worker_binary};

/// What a pool does not decide by itself.
#[derive(Clone)]
pub struct Settings {
    /// How the Hub is reached.
    pub hub: HubSettings,
    /// Times of downloads.
    pub limits: Limits,
    /// How long a worker may take to be ready.
    pub spawn_timeout: Duration,
    /// How long a worker may take to end by itself.
    pub stop_grace: Duration,
    /// What started workers present to their orchestrator; without one they inherit
    /// `RBEES_ORCHESTRATOR_TOKEN` where it is set.
    pub orchestrator_token: Option<String>,
}

impl Settings {
    /// The environment's, and the usual times.
    pub fn from_env() -> Self {
        Self {
            hub: HubSettings::from_env(),
            limits: Limits::default(),
            spawn_timeout: Duration::from_secs(600),
            stop_grace: Duration::from_millis(STOP_GRACE_MS),
            orchestrator_token: None,
        }
    }
}

/// A pool: its home and its hands.
#[derive(Clone)]
pub struct Host {
    home: Home,
    settings: Settings,
    progress: OnProgress,
}

/// A model as a spawn needs it.
struct Chosen {
    choice: ModelChoice,
    header: Option<Header>,
    weights_bytes: u64,
}

impl Chosen {
    /// A stand-in, which needs what it says it needs.
    fn stand_in(choice: ModelChoice) -> Self {
        Self { weights_bytes: choice.stated_bytes(), choice, header: None }
    }

    /// What decides its need of memory besides its weights, where that can be told.
    fn shape(&self) -> Option<Shape> {
        let stated = self.choice.is_fake() && self.weights_bytes > 0;
        self.header.as_ref().map(Shape::of).or_else(|| stated.then(Shape::default))
    }
}

impl Host {
    /// A pool in this home; progress goes to `progress`.
    pub fn new(home: Home, settings: Settings, progress: OnProgress) -> Self {
        Self { home, settings, progress }
    }

    /// Where it keeps its files.
    pub fn home(&self) -> &Home {
        &self.home
    }

    fn downloader(&self) -> Result<Downloader, ErrorDetail> {
        Downloader::new(self.settings.limits, self.progress.clone())
    }

    /// The catalog.
    ///
    /// # Errors
    /// `INVALID_CONFIG` with file and line.
    pub fn catalog(&self) -> Result<Catalog, ErrorDetail> {
        catalog_file::load(&self.home)
    }

    /// Makes or changes an entry of the catalog.
    ///
    /// # Errors
    /// Those of [`Catalog::register`] and of the file.
    pub fn register(&self, new: &Registration) -> Result<(Registered, CatalogModel), ErrorDetail> {
        catalog_file::edit(&self.home, |catalog| {
            let outcome = catalog.register(new)?;
            Ok((outcome, catalog.find(&new.id)?.clone()))
        })
    }

    /// Takes an entry out; its files stay.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND`, and those of the file.
    pub fn unregister(&self, id: &str) -> Result<CatalogModel, ErrorDetail> {
        catalog_file::edit(&self.home, |catalog| catalog.unregister(id))
    }

    /// Fetches a model by id, or by a reference, which gets an entry of its own.
    ///
    /// # Errors
    /// Those of [`models::download`].
    pub async fn download(&self, text: &str) -> Result<CatalogModel, ErrorDetail> {
        let id = match text.parse::<ModelRef>()? {
            ModelRef::Catalog(id) => id,
            reference => self.entry_for(&reference)?,
        };
        models::download(&self.home, &self.downloader()?, &self.settings.hub, &id).await
    }

    /// The entry of a reference; made when there is none.
    fn entry_for(&self, reference: &ModelRef) -> Result<String, ErrorDetail> {
        if let Some(known) = self.catalog()?.find_by_source(reference) {
            return Ok(known.id.clone());
        }
        let text = reference.to_string();
        let name = reference.file_name().map(|name| name.trim_end_matches(".gguf").to_owned());
        let name = name.or_else(|| text.rsplit('/').next().map(str::to_owned)).unwrap_or_default();
        let id: String = name
            .to_lowercase()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' })
            .take(64)
            .collect();
        let new = Registration {
            id,
            name,
            repo: text,
            architecture: "unknown".to_owned(),
            file: None,
            sha256: None,
        };
        Ok(self.register(&new)?.1.id)
    }

    /// Hashes every file of a model and records the outcome.
    ///
    /// # Errors
    /// Those of [`models::verify`].
    pub async fn verify(&self, id: &str) -> Result<Verified, ErrorDetail> {
        models::verify(&self.home, &self.downloader()?, id).await
    }

    /// Removes a model's files; gives the entry and the bytes freed.
    ///
    /// # Errors
    /// Those of [`models::delete`].
    pub fn delete(&self, id: &str) -> Result<(CatalogModel, u64), ErrorDetail> {
        models::delete(&self.home, id)
    }

    /// What the machine has.
    ///
    /// # Errors
    /// `STORAGE_FAILED`.
    pub async fn hardware(&self) -> Result<Hardware, ErrorDetail> {
        let ours: Vec<u32> = self.workers()?.iter().map(|worker| worker.process.pid).collect();
        let models = self.home.models();
        blocking(move || Ok(facts::hardware(&models, &ours))).await
    }

    /// The handshake: version, protocol, hardware, models, workers.
    ///
    /// # Errors
    /// Those of its parts.
    pub async fn status(&self) -> Result<PoolStatus, ErrorDetail> {
        let binary = std::env::current_exe().map(|exe| exe.to_string_lossy().into_owned());
        Ok(PoolStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL,
            host: facts::host_name(),
            home: self.home.text(),
            binary: binary.unwrap_or_else(|_| "rbees-pool".to_owned()),
            hardware: self.hardware().await?,
            models: self.catalog()?.models,
            workers: self.workers()?,
            fits: self.fits().await?,
        })
    }

    /// What each downloaded model would need, and whether it fits. One whose need cannot be told, such
    /// as one with a broken header, is left out: a spawn will say why.
    async fn fits(&self) -> Result<Vec<Fit>, ErrorDetail> {
        let built = match worker_binary::find() {
            Ok(program) => worker_binary::capabilities(&program).await.unwrap_or_else(|_| every_backend()),
            Err(_) => every_backend(),
        };
        let hardware = self.hardware().await?;
        let mut fits = Vec::new();
        for model in self.catalog()?.models.iter().filter(|model| model.downloaded) {
            let Ok(chosen) = self.entry_as_chosen(model).await else { continue };
            let program = "rbees-workerd".to_owned();
            let facts = self.facts(&chosen, program, built.clone(), hardware.clone())?;
            if let Ok((_, Some(fit))) = self.preflight(&SpawnRequest::default(), &chosen, &facts) {
                fits.push(fit);
            }
        }
        Ok(fits)
    }

    /// The workers as they are now; nothing is changed.
    ///
    /// # Errors
    /// `STORAGE_FAILED`.
    pub fn workers(&self) -> Result<Vec<WorkerRecord>, ErrorDetail> {
        Ok(reconcile::view(&records::observe(&self.home)?))
    }

    /// The worker that an id or an unambiguous beginning of one means.
    ///
    /// # Errors
    /// `WORKER_NOT_FOUND`, `AMBIGUOUS_ID`.
    pub fn worker(&self, id: &str) -> Result<WorkerRecord, ErrorDetail> {
        worker_record::find(&self.workers()?, id).cloned()
    }

    /// Brings the records in line with the processes; gives what was done.
    ///
    /// # Errors
    /// `STORAGE_FAILED`.
    pub fn cleanup(&self) -> Result<Vec<Action>, ErrorDetail> {
        let actions = reconcile::actions(&records::observe(&self.home)?);
        for action in &actions {
            match action {
                Action::Refresh(record) | Action::Adopt(record) => records::write(&self.home, record)?,
                Action::Remove(record) => {
                    crate::processes::sweep(&record.process, record.worker_id.as_str());
                    records::remove(&self.home, &record.worker_id)?;
                }
            }
        }
        Ok(actions)
    }

    /// Ends a worker; gives it, and whether it had to be killed.
    ///
    /// # Errors
    /// `WORKER_NOT_FOUND`, `AMBIGUOUS_ID`, `STORAGE_FAILED`.
    pub async fn stop(&self, id: &str) -> Result<(WorkerRecord, bool), ErrorDetail> {
        let worker = self.worker(id)?;
        let killed = stop::stop(&self.home, &worker, self.settings.stop_grace).await?;
        Ok((worker, killed))
    }

    /// Ends all workers at once.
    ///
    /// # Errors
    /// `STORAGE_FAILED`.
    pub async fn stop_all(&self) -> Result<Vec<(WorkerRecord, bool)>, ErrorDetail> {
        let workers = self.workers()?;
        let stops = workers.iter().map(|worker| stop::stop(&self.home, worker, self.settings.stop_grace));
        let killed = futures_util::future::join_all(stops).await;
        workers.into_iter().zip(killed).map(|(worker, killed)| Ok((worker, killed?))).collect()
    }

    /// The last lines of a worker's log, also of one that is gone.
    ///
    /// # Errors
    /// `WORKER_NOT_FOUND`, `AMBIGUOUS_ID`, `STORAGE_FAILED`.
    pub fn logs(&self, id: &str, lines: usize) -> Result<(PathBuf, Vec<String>), ErrorDetail> {
        let path = match self.worker(id) {
            Ok(worker) => self.home.logs().join(format!("{}.log", worker.worker_id)),
            Err(error) => self.old_log(id).ok_or(error)?,
        };
        let lines = spawn::tail(&path, lines).map_err(|error| storage("read", &path, &error))?;
        Ok((path, lines))
    }

    fn old_log(&self, id: &str) -> Option<PathBuf> {
        let id: WorkerId = id.parse().ok()?;
        Some(self.home.logs().join(format!("{id}.log"))).filter(|path| path.is_file())
    }

    /// Whether a model fits where this request would run it, whatever the worker's build can do.
    ///
    /// # Errors
    /// Those of planning, `MODEL_NOT_READY`.
    pub async fn fit(&self, request: &SpawnRequest) -> Result<Fit, ErrorDetail> {
        let chosen = self.choose_model(request).await?;
        let program = "rbees-workerd".to_owned();
        let facts = self.facts(&chosen, program, every_backend(), self.hardware().await?)?;
        let (plan, fit) = self.preflight(request, &chosen, &facts)?;
        fit.ok_or_else(|| {
            let message = format!("nothing is known of the memory that `{}` needs", plan.model);
            ErrorDetail::new(ErrorCode::UnsupportedModel, message)
        })
    }

    /// Starts a worker and waits until it is ready; dropping the future undoes everything.
    ///
    /// # Errors
    /// Those of planning, `INSUFFICIENT_VRAM`, `INSUFFICIENT_MEMORY`, and those of [`spawn::spawn`].
    pub async fn spawn(&self, request: &SpawnRequest) -> Result<WorkerRecord, ErrorDetail> {
        let chosen = self.choose_model(request).await?;
        let program = worker_binary::find()?;
        let built = worker_binary::capabilities(&program).await?;
        let program = program.to_string_lossy().into_owned();
        let facts = self.facts(&chosen, program, built, self.hardware().await?)?;
        let (mut plan, fit) = self.preflight(request, &chosen, &facts)?;
        if let Some(token) = &self.settings.orchestrator_token {
            plan.env.push((ENV_ORCHESTRATOR_TOKEN.to_owned(), token.clone()));
        }
        if let Some(fit) = fit.as_ref().filter(|fit| !fit.fits) {
            return Err(too_large(fit, &plan.device));
        }
        let lock = self.home.spawn_lock(&plan.worker_id);
        let starting = Lock::try_take(&lock)?.ok_or_else(|| id_taken(&plan.worker_id))?;
        if self.workers()?.iter().any(|worker| worker.worker_id == plan.worker_id) {
            return Err(id_taken(&plan.worker_id));
        }
        let predicted = fit.map(|fit| fit.needed_bytes);
        let spawned =
            spawn::spawn(&self.home, &plan, predicted, self.settings.spawn_timeout, &self.progress).await;
        drop(starting);
        spawned
    }

    fn facts(
        &self,
        chosen: &Chosen,
        program: String,
        capabilities: WorkerCapabilities,
        hardware: Hardware,
    ) -> Result<Facts, ErrorDetail> {
        Ok(Facts {
            home: self.home.text(),
            program,
            capabilities,
            hardware,
            model: chosen.choice.clone(),
            fresh: fresh_id()?,
        })
    }

    fn preflight(
        &self,
        request: &SpawnRequest,
        chosen: &Chosen,
        facts: &Facts,
    ) -> Result<(SpawnPlan, Option<Fit>), ErrorDetail> {
        let plan = plan(request, facts)?;
        let Some(shape) = chosen.shape() else { return Ok((plan, None)) };
        let load = Load {
            model: &plan.model,
            shape,
            weights_bytes: chosen.weights_bytes,
            slots: plan.slots,
            context: plan.context,
        };
        let held = fit::held_bytes(&self.workers()?, &plan.device.to_string());
        let room = room(&plan.device, &facts.hardware);
        let room = budget::read(&self.home)?.within(room, plan.device.gpu.is_some(), held);
        let fit = fit::check(&load, &room);
        Ok((plan, Some(fit)))
    }

    async fn choose_model(&self, request: &SpawnRequest) -> Result<Chosen, ErrorDetail> {
        let text = match (&request.model, &request.model_ref) {
            (Some(_), Some(_)) => {
                return Err(ErrorDetail::new(ErrorCode::InvalidField, "give model or model_ref, not both")
                    .with_field("model_ref"));
            }
            (model, reference) => model.as_ref().or(reference.as_ref()),
        };
        if let Some(choice) = text.and_then(|text| ModelChoice::fake(text)) {
            return Ok(Chosen::stand_in(choice));
        }
        let catalog = self.catalog()?;
        let reference = text.map(|text| text.parse::<ModelRef>()).transpose()?;
        match &reference {
            None => self.entry_as_chosen(catalog.only_downloaded()?).await,
            Some(ModelRef::Catalog(id)) => self.entry_as_chosen(catalog.find(id)?).await,
            Some(reference) => match (catalog.find_by_source(reference), reference) {
                // A file that lies here can be run whether or not its entry was ever completed.
                (Some(model), ModelRef::File { path }) if !model.downloaded => bare_file(path.clone()).await,
                (Some(model), _) => self.entry_as_chosen(model).await,
                (None, ModelRef::File { path }) => bare_file(path.clone()).await,
                (None, _) => Err(not_in_catalog(reference)),
            },
        }
    }

    async fn entry_as_chosen(&self, model: &CatalogModel) -> Result<Chosen, ErrorDetail> {
        let source = model.sources.first().filter(|_| model.format == STAND_IN && model.downloaded);
        if let Some(choice) = source.and_then(|source| ModelChoice::fake(source)) {
            return Ok(Chosen::stand_in(ModelChoice { name: model.id.clone(), ..choice }));
        }
        let ready = models::is_here(&self.home, model);
        let first = model.files.first().filter(|_| ready).ok_or_else(|| {
            let message = format!("the files of `{}` are not on this machine", model.id);
            ErrorDetail::new(ErrorCode::ModelNotReady, message)
                .with_field("model")
                .with_hint(format!("rbees-pool models download {}", model.id))
        })?;
        let path = self.home.model_file(&first.path);
        let header = if model.format == "gguf" { Some(header_of(path.clone()).await?) } else { None };
        let argument = if model.format == "gguf" { path.as_path() } else { path.parent().unwrap_or(&path) };
        let choice = ModelChoice {
            name: model.id.clone(),
            argument: argument.to_string_lossy().into_owned(),
            reference: pinned_reference(model),
            trained_context: header
                .as_ref()
                .and_then(|header| header.context_length())
                .or(model.context_length),
        };
        Ok(Chosen { choice, header, weights_bytes: model.size_bytes })
    }
}

fn id_taken(id: &WorkerId) -> ErrorDetail {
    ErrorDetail::new(
        ErrorCode::InvalidField,
        format!("there is already a worker {id}, or it is being started"),
    )
    .with_field("worker_id")
    .with_hint(format!("give another --worker-id, or first: rbees-pool worker stop {id}"))
}

/// A worker that could be built.
fn every_backend() -> WorkerCapabilities {
    WorkerCapabilities {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: PROTOCOL,
        engines: Vec::new(),
        backends: ["cpu", "cuda", "metal", "vulkan", "fake"].map(str::to_owned).into(),
        formats: Vec::new(),
        missing_cpu_features: Vec::new(),
    }
}

async fn header_of(path: PathBuf) -> Result<Header, ErrorDetail> {
    blocking(move || models::read_header(&path)).await
}

/// A file that no entry names is run under its own name.
async fn bare_file(path: String) -> Result<Chosen, ErrorDetail> {
    let place = Path::new(&path);
    let found = place.metadata().ok().filter(std::fs::Metadata::is_file).ok_or_else(|| {
        ErrorDetail::new(ErrorCode::ModelNotFound, format!("{path} is not a file of this machine"))
            .with_field("model_ref")
    })?;
    let header = header_of(place.to_path_buf()).await?;
    let name = place.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
    let choice = ModelChoice {
        name,
        argument: path.clone(),
        reference: Some(format!("file:{path}")),
        trained_context: header.context_length(),
    };
    Ok(Chosen { choice, header: Some(header), weights_bytes: found.len() })
}

fn not_in_catalog(reference: &ModelRef) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::ModelNotFound, format!("no entry of the catalog comes from {reference}"))
        .with_field("model_ref")
        .with_hint(format!("rbees-pool models download {reference}"))
}

/// The first source, with the commit it was pinned to.
fn pinned_reference(model: &CatalogModel) -> Option<String> {
    let source = model.sources.first()?;
    match (source.parse(), &model.revision) {
        (Ok(ModelRef::Hub { repo, file, .. }), Some(revision)) => {
            Some(ModelRef::Hub { repo, revision: Some(revision.clone()), file }.to_string())
        }
        _ => Some(source.clone()),
    }
}

fn room(device: &Device, hardware: &Hardware) -> Room {
    let gpu = device.gpu.and_then(|index| hardware.gpus.iter().find(|gpu| gpu.index == index));
    let (total_bytes, free_bytes) = gpu
        .map_or((hardware.ram_total_bytes, hardware.ram_available_bytes), |gpu| {
            (gpu.memory_total_bytes, gpu.memory_free_bytes)
        });
    Room { device: device.to_string(), total_bytes, free_bytes }
}

fn too_large(fit: &Fit, device: &Device) -> ErrorDetail {
    let code = if device.gpu.is_some() { ErrorCode::InsufficientVram } else { ErrorCode::InsufficientMemory };
    let message = format!(
        "`{}` needs {} bytes on {} for {} slots of {} tokens and {} are to stay free, but {} are free",
        fit.model, fit.needed_bytes, fit.device, fit.slots, fit.context, fit.margin_bytes, fit.free_bytes
    );
    let details = serde_json::to_value(fit).unwrap_or_default();
    ErrorDetail::new(code, message)
        .with_details(details)
        .with_hint("ask for fewer --slots or less --context, stop another worker, or choose a smaller model")
}

/// Twelve hex digits.
fn fresh_id() -> Result<String, ErrorDetail> {
    let mut bytes = [0u8; 6];
    getrandom::fill(&mut bytes).map_err(internal)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
