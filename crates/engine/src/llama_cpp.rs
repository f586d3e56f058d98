//! GGUF models on llama.cpp.
//!
//! One context holds all sequences over one unified KV cache, so a step may mix any of them. The
//! crate offers no way to abort a running decode, so a step is as long as its rows: the decode
//! loop keeps prefill chunks small. llama.cpp's log lines go to `tracing` under the target
//! `llama-cpp-2`, with their own levels.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::context::session::{LlamaStateSeqFlags, SeqState};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::{
    LlamaBackendDevice, LlamaBackendDeviceType, LogOptions, list_llama_ggml_backend_devices,
    send_logs_to_tracing,
};

use crate::backend::Backend;
use crate::error::EngineError;
use crate::loader::DEFAULT_CONTEXT;
use crate::traits::{
    Caps, Engine, LoadOptions, ModelInfo, Row, SavedSeq, Seq, StepOutcome, Token, Tokenizer,
};
use gguf::Header;

/// Rows in one step.
const MAX_ROWS: u32 = 512;
/// More layers than any model has: all of them go to the device.
const ALL_LAYERS: u32 = 1 << 16;

static LIBRARY: OnceLock<Result<LlamaBackend, String>> = OnceLock::new();

/// Loads the GGUF file at `path`, whose `header` has been checked.
///
/// # Errors
/// See [`EngineError`]. Nothing falls back to the CPU.
pub fn open(
    path: &Path,
    header: &Header,
    options: &LoadOptions,
    progress: Box<dyn FnMut(f32) -> bool + Send>,
) -> Result<Box<dyn Engine>, EngineError> {
    let context_length = context_length(header, options)?;
    let library = library()?;
    let devices = choose_devices(options, &list_llama_ggml_backend_devices())?;
    let free_before = free_memory(&devices);
    let params = model_params(options.backend, &devices)?.with_progress_callback(progress);
    let model = LlamaModel::load_from_file(library, path, &params)
        .map_err(|error| EngineError::LoadFailed(format!("{} model: {error}", header.architecture())))?;
    let model = Arc::new(model);
    let held = HeldContext::new(library, model, context_params(context_length, options))?;
    let taken = Taken::measure(options.backend, &devices, free_before, header, context_length, options)?;
    let info = model_info(&held.model, header, options.backend, &devices, context_length, taken);
    Ok(Box::new(LlamaCpp::new(held, info, header, options.slots)?))
}

fn library() -> Result<&'static LlamaBackend, EngineError> {
    let library = LIBRARY.get_or_init(|| {
        send_logs_to_tracing(LogOptions::default());
        LlamaBackend::init().map_err(|error| error.to_string())
    });
    library.as_ref().map_err(|error| EngineError::LoadFailed(error.clone()))
}

fn context_length(header: &Header, options: &LoadOptions) -> Result<u32, EngineError> {
    let holds = header.context_length().unwrap_or(DEFAULT_CONTEXT);
    let context = options.context.unwrap_or_else(|| holds.min(DEFAULT_CONTEXT));
    if context > holds {
        let message = format!("context is {context}; this model holds at most {holds} tokens");
        return Err(EngineError::InvalidOption { field: "context", message });
    }
    if context.checked_mul(options.slots).is_none_or(|all| all > i32::MAX as u32 / 2) {
        let message =
            format!("{} slots of {context} tokens are more than the engine can hold", options.slots);
        return Err(EngineError::InvalidOption { field: "context", message });
    }
    Ok(context)
}

/// The devices to put the model on: the processor, or exactly the cards that were asked for.
fn choose_devices(
    options: &LoadOptions,
    all: &[LlamaBackendDevice],
) -> Result<Vec<LlamaBackendDevice>, EngineError> {
    let Some(library) = library_name(options.backend) else {
        let cpu = all.iter().find(|device| device.device_type == LlamaBackendDeviceType::Cpu);
        return Ok(cpu.into_iter().cloned().collect());
    };
    let cards: Vec<&LlamaBackendDevice> = all
        .iter()
        .filter(|device| {
            device.backend.eq_ignore_ascii_case(library)
                && matches!(
                    device.device_type,
                    LlamaBackendDeviceType::Gpu | LlamaBackendDeviceType::IntegratedGpu
                )
        })
        .collect();
    let wanted = if options.gpus.is_empty() { &[0][..] } else { &options.gpus };
    wanted.iter().map(|number| card(options.backend, &cards, *number)).collect()
}

fn card(
    backend: Backend,
    cards: &[&LlamaBackendDevice],
    wanted: u32,
) -> Result<LlamaBackendDevice, EngineError> {
    let found = || cards.iter().map(|card| device_name(card)).collect();
    cards.get(wanted as usize).map(|card| (*card).clone()).ok_or_else(|| EngineError::DeviceNotFound {
        backend,
        wanted,
        found: found(),
    })
}

/// How llama.cpp calls the library of a backend; `None` for the processor.
const fn library_name(backend: Backend) -> Option<&'static str> {
    match backend {
        Backend::Cuda => Some("CUDA"),
        Backend::Metal => Some("MTL"),
        Backend::Vulkan => Some("Vulkan"),
        Backend::Cpu | Backend::Fake => None,
    }
}

fn device_name(device: &LlamaBackendDevice) -> String {
    if device.description.is_empty() {
        device.name.clone()
    } else {
        format!("{} ({})", device.name, device.description)
    }
}

fn free_memory(devices: &[LlamaBackendDevice]) -> u64 {
    devices.iter().map(|device| device.memory_free as u64).sum()
}

fn model_params(backend: Backend, devices: &[LlamaBackendDevice]) -> Result<LlamaModelParams, EngineError> {
    let on_card = library_name(backend).is_some();
    let numbers: Vec<usize> =
        if on_card { devices.iter().map(|device| device.index).collect() } else { Vec::new() };
    LlamaModelParams::default()
        .with_n_gpu_layers(if on_card { ALL_LAYERS } else { 0 })
        .with_devices(&numbers)
        .map_err(|error| EngineError::LoadFailed(error.to_string()))
}

fn context_params(context_length: u32, options: &LoadOptions) -> LlamaContextParams {
    let on_card = library_name(options.backend).is_some();
    let threads = options.threads.map_or_else(all_threads, |threads| threads.min(512) as i32);
    LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(context_length * options.slots))
        .with_n_seq_max(options.slots)
        .with_kv_unified(true)
        .with_n_batch(MAX_ROWS)
        .with_n_ubatch(MAX_ROWS)
        .with_n_threads(threads)
        .with_n_threads_batch(threads)
        .with_offload_kqv(on_card)
        .with_op_offload(on_card)
        .with_no_perf(true)
}

fn all_threads() -> i32 {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(512) as i32)
}

/// Memory that the model took.
#[derive(Clone, Copy)]
struct Taken {
    vram: u64,
    ram: u64,
}

impl Taken {
    /// On a card: what its free memory fell by. On the processor: the resident memory of the
    /// process, where the system tells it; elsewhere weights and KV cache by size.
    fn measure(
        backend: Backend,
        devices: &[LlamaBackendDevice],
        free_before: u64,
        header: &Header,
        context_length: u32,
        options: &LoadOptions,
    ) -> Result<Self, EngineError> {
        if library_name(backend).is_none() {
            let by_size = || {
                let tokens = u64::from(context_length) * u64::from(options.slots);
                let kv = header.kv_bytes_per_token(2).unwrap_or(0).saturating_mul(tokens);
                header.tensor_bytes().saturating_add(kv)
            };
            return Ok(Self { vram: 0, ram: resident_bytes().unwrap_or_else(by_size) });
        }
        let now = list_llama_ggml_backend_devices();
        let same: Vec<LlamaBackendDevice> =
            now.into_iter().filter(|device| devices.iter().any(|old| old.index == device.index)).collect();
        let vram = free_before.saturating_sub(free_memory(&same));
        if vram == 0 && backend != Backend::Metal {
            let message = format!(
                "nothing was put on {}",
                devices.iter().map(device_name).collect::<Vec<_>>().join(", ")
            );
            return Err(EngineError::LoadFailed(message));
        }
        Ok(Self { vram, ram: 0 })
    }
}

/// Memory of this process that is in use, mapped files included, in bytes.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn model_info(
    model: &LlamaModel,
    header: &Header,
    backend: Backend,
    devices: &[LlamaBackendDevice],
    context_length: u32,
    taken: Taken,
) -> ModelInfo {
    let vocab = model.vocab();
    let bos = known(vocab.bos());
    let text = |token: Option<Token>| token.map(|token| special_text(model, token)).unwrap_or_default();
    let (end_tokens, control_texts) = ends_and_controls(model);
    ModelInfo {
        engine: "llama.cpp (llama-cpp-2 0.1.160)".to_owned(),
        backend,
        devices: devices.iter().map(device_name).collect(),
        architecture: header.architecture().to_owned(),
        name: header.name().map(str::to_owned),
        quantization: header.quantization(),
        tokenizer: header.tokenizer().map(str::to_owned),
        context_length,
        vocab: u32::try_from(vocab.n_tokens()).unwrap_or(0),
        chat_template: model.chat_template(None).ok().and_then(|template| template.to_string().ok()),
        bos,
        bos_text: text(bos),
        eos_text: text(known(vocab.eos())),
        add_bos: vocab.should_add_bos() && bos.is_some(),
        end_tokens,
        control_texts,
        vram_bytes: taken.vram,
        ram_bytes: taken.ram,
    }
}

fn known(token: LlamaToken) -> Option<Token> {
    Token::try_from(token.0).ok()
}

fn special_text(model: &LlamaModel, token: Token) -> String {
    let bytes = model.vocab().token_to_piece(LlamaToken(token as i32), true, None);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The tokens that end a generation, and the texts of all control tokens.
fn ends_and_controls(model: &LlamaModel) -> (Vec<Token>, Vec<String>) {
    let vocab = model.vocab();
    let mut ends = Vec::new();
    let mut controls = Vec::new();
    for token in vocab.tokens() {
        let Some(number) = known(token) else { continue };
        if vocab.is_eog(token) {
            ends.push(number);
        }
        if vocab.is_control(token) {
            controls.push(special_text(model, number));
        }
    }
    controls.retain(|text| !text.is_empty());
    (ends, controls)
}

/// A context together with the model that it points into.
struct HeldContext {
    // Dropped before the model: fields are dropped in the order of their declaration.
    context: LlamaContext<'static>,
    model: Arc<LlamaModel>,
}

impl HeldContext {
    #[allow(unsafe_code)]
    fn new(
        library: &'static LlamaBackend,
        model: Arc<LlamaModel>,
        params: LlamaContextParams,
    ) -> Result<Self, EngineError> {
        // SAFETY: the reference points into the heap block of the `Arc`, which `Self` keeps alive
        // and which never moves; `context`, the only holder of the reference, is private, is never
        // given out, and is dropped before `model`.
        let unbound: &'static LlamaModel = unsafe { &*Arc::as_ptr(&model) };
        let context = unbound.new_context(library, params).map_err(|error| {
            EngineError::LoadFailed(format!("no memory for the context, or it cannot be made: {error}"))
        })?;
        Ok(Self { context, model })
    }
}

struct LlamaCpp {
    batch: LlamaBatch<'static>,
    held: HeldContext,
    info: ModelInfo,
    caps: Caps,
    /// Which rows of the last step have scores.
    scored: Vec<bool>,
}

impl LlamaCpp {
    fn new(held: HeldContext, info: ModelInfo, header: &Header, slots: u32) -> Result<Self, EngineError> {
        if held.context.n_ctx() < info.context_length.saturating_mul(slots) {
            return Err(EngineError::LoadFailed(format!(
                "the engine made a context of {} tokens instead of {} for {slots} slots",
                held.context.n_ctx(),
                info.context_length
            )));
        }
        let windowed = header.uint(&format!("{}.attention.sliding_window", header.architecture()));
        let cut = !held.model.is_recurrent() && !held.model.is_hybrid() && windowed.unwrap_or(0) == 0;
        let caps = Caps { max_seqs: slots, max_rows: MAX_ROWS, partial_remove: cut };
        Ok(Self { batch: LlamaBatch::new(MAX_ROWS as usize, 1), held, info, caps, scored: Vec::new() })
    }

    fn fill(&mut self, rows: &[Row]) -> Result<(), EngineError> {
        self.batch.clear();
        for row in rows {
            let (Ok(token), Ok(pos), Ok(seq)) =
                (i32::try_from(row.token), i32::try_from(row.pos), i32::try_from(row.seq))
            else {
                return Err(EngineError::StepFailed("a row has a number beyond 31 bits".to_owned()));
            };
            if row.token >= self.info.vocab || row.seq >= self.caps.max_seqs {
                return Err(EngineError::StepFailed("a row names no token or no sequence".to_owned()));
            }
            self.batch.add(LlamaToken(token), pos, &[seq], row.logits).map_err(failed)?;
        }
        Ok(())
    }
}

fn failed(error: impl std::fmt::Display) -> EngineError {
    EngineError::StepFailed(error.to_string())
}

impl Engine for LlamaCpp {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn tokenizer(&self) -> Arc<dyn Tokenizer> {
        Arc::new(LlamaTokenizer { model: Arc::clone(&self.held.model) })
    }

    fn caps(&self) -> Caps {
        self.caps
    }

    fn step(&mut self, rows: &[Row], _: &AtomicBool) -> Result<StepOutcome, EngineError> {
        self.scored.clear();
        self.fill(rows)?;
        self.held.context.decode(&mut self.batch).map_err(failed)?;
        self.scored.extend(rows.iter().map(|row| row.logits));
        Ok(StepOutcome::Done)
    }

    fn logits(&self, row: usize) -> &[f32] {
        if self.scored.get(row) == Some(&true) { self.held.context.get_logits_ith(row as i32) } else { &[] }
    }

    fn seq_remove(&mut self, seq: Seq, from: u32) -> Result<(), EngineError> {
        if from > 0 && !self.caps.partial_remove {
            return Err(EngineError::Unsupported("its cache cannot be cut inside a sequence"));
        }
        let removed = self.held.context.clear_kv_cache_seq(Some(seq), Some(from), None).map_err(failed)?;
        if removed { Ok(()) } else { Err(EngineError::Unsupported("its cache refused to remove a sequence")) }
    }

    fn seq_copy(&mut self, from: Seq, to: Seq, upto: u32) -> Result<(), EngineError> {
        if !self.caps.partial_remove {
            return Err(EngineError::Unsupported("its cache cannot be cut inside a sequence"));
        }
        // In a unified cache this marks the cells as shared; nothing is copied.
        self.held.context.kv_cache_seq_cp(from as i32, to as i32, Some(0), Some(upto)).map_err(failed)
    }

    fn seq_save(&mut self, seq: Seq) -> Result<Box<dyn SavedSeq>, EngineError> {
        let state =
            self.held.context.state_seq_get(seq as i32, LlamaStateSeqFlags::empty()).map_err(failed)?;
        Ok(Box::new(SavedState(state)))
    }

    fn seq_load(&mut self, seq: Seq, saved: &dyn SavedSeq) -> Result<(), EngineError> {
        let Some(SavedState(state)) = saved.as_any().downcast_ref() else {
            return Err(EngineError::Unsupported("the sequence was saved by another engine"));
        };
        self.held.context.state_seq_set(state, seq as i32).map_err(failed)
    }
}

/// A sequence as llama.cpp writes it.
#[derive(Debug)]
struct SavedState(SeqState);

impl SavedSeq for SavedState {
    fn bytes(&self) -> u64 {
        self.0.byte_len() as u64
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// The model's vocabulary, usable from any thread.
struct LlamaTokenizer {
    model: Arc<LlamaModel>,
}

impl Tokenizer for LlamaTokenizer {
    fn tokenize(&self, text: &str, special: bool) -> Result<Vec<Token>, EngineError> {
        let tokens = self.model.vocab().tokenize(text.as_bytes(), false, special);
        Ok(tokens.into_iter().filter_map(known).collect())
    }

    fn piece(&self, token: Token, out: &mut Vec<u8>) {
        if let Ok(token) = i32::try_from(token)
            && token < self.model.vocab().n_tokens()
        {
            out.extend_from_slice(&self.model.vocab().token_to_piece(LlamaToken(token), false, None));
        }
    }
}
