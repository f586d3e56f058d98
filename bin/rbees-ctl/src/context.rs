//! What every command works with: the printer, the configuration, the way to both sides.

use std::path::PathBuf;

use api_types::ErrorDetail;
use cli_kit::Printer;
use clients::pool::{LocalPool, OrchestratorToken, Pool};
use etcetera::BaseStrategy;
use llama_orch_sdk::Client;

use crate::cli::GlobalArgs;
use crate::config::Config;
use crate::detail;

/// Where an orchestrator listens unless told otherwise.
pub const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:8080";

/// See the module.
#[derive(Debug)]
pub struct Context {
    pub printer: Printer,
    pub config: Config,
    pub config_path: PathBuf,
    home: Option<PathBuf>,
    endpoint: Option<String>,
}

impl Context {
    /// Reads the configuration; gives the printer back where that fails.
    pub fn new(printer: Printer, args: &GlobalArgs) -> Result<Self, (Printer, ErrorDetail)> {
        let read = config_path(args).and_then(|path| Ok((Config::read(&path, args.config.is_some())?, path)));
        match read {
            Ok((config, config_path)) => {
                let (home, endpoint) = (args.home.clone(), args.endpoint.clone());
                Ok(Self { printer, config, config_path, home, endpoint })
            }
            Err(error) => Err((printer, error)),
        }
    }

    /// Address of the orchestrator.
    pub fn endpoint(&self) -> &str {
        self.endpoint.as_deref().or(self.config.endpoint.as_deref()).unwrap_or(DEFAULT_ENDPOINT)
    }

    /// State root of this machine.
    pub fn home(&self) -> Result<PathBuf, ErrorDetail> {
        if let Some(home) = &self.home {
            return std::path::absolute(home).map_err(|error| detail::file("found", home, &error));
        }
        let base = etcetera::choose_base_strategy().map_err(|_| no_home())?;
        Ok(base.data_dir().join("rbees"))
    }

    /// A client of the orchestrator.
    pub fn client(&self) -> Result<Client, ErrorDetail> {
        self.client_of(self.endpoint())
    }

    /// A client of the orchestrator at `url`.
    pub fn client_of(&self, url: &str) -> Result<Client, ErrorDetail> {
        let client = Client::new(url);
        Ok(match self.token()? {
            Some(token) => client.with_token(token),
            None => client,
        })
    }

    /// What a worker presents that is started for the orchestrator of this command.
    pub fn worker_token(&self) -> Result<Option<OrchestratorToken>, ErrorDetail> {
        Ok(self.token()?.map(OrchestratorToken::new))
    }

    fn token(&self) -> Result<Option<String>, ErrorDetail> {
        let Some(path) = &self.config.token_file else { return Ok(None) };
        let token = std::fs::read_to_string(path).map_err(|error| detail::file("read", path, &error))?;
        Ok(Some(token.trim().to_owned()))
    }

    /// The pool of this machine.
    pub fn local_pool(&self) -> Result<Pool, ErrorDetail> {
        Ok(Pool::Local(LocalPool::find()?.with_home(self.home()?)))
    }

    /// Whether `name` means this machine's own pool: its name in the orchestrator's registry, unless
    /// the configuration gives it to another machine.
    pub fn is_local(&self, name: &str) -> bool {
        name == "local" && self.config.pool(name).is_none()
    }

    /// The pool called `name`: one of the configuration by name or address, else `local` for this
    /// machine's own (its name in the orchestrator's registry), else an SSH destination.
    pub fn pool(&self, name: &str) -> Result<Pool, ErrorDetail> {
        match self.config.pool(name) {
            Some((_, pool)) => Pool::ssh(&pool.address, pool.repo_dir.as_deref()),
            None if self.is_local(name) => self.local_pool(),
            None => Pool::ssh(name, None),
        }
    }
}

fn config_path(args: &GlobalArgs) -> Result<PathBuf, ErrorDetail> {
    if let Some(path) = &args.config {
        return Ok(path.clone());
    }
    let base = etcetera::choose_base_strategy().map_err(|_| no_home())?;
    Ok(base.config_dir().join("rbees/rbees.toml"))
}

fn no_home() -> ErrorDetail {
    detail::config("there is no home directory: HOME is not set")
        .with_hint("give --home DIR and --config FILE, or set HOME")
}
