//! Puts the daemon together, and takes it apart in order.

mod home_lock;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use orchestrator_core::policy::PolicyChange;
use policy_script::Language;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::home_lock::HomeLock;
use crate::actions::{Actions, PoolLimits};
use crate::config::{Config, Limits, Token};
use crate::descriptors::affordable;
use crate::driver::{self, Driver, Handle};
use crate::http::{App, Entrance, Guard, Parts, listener};
use crate::ids::next_key;
use crate::metrics::Metrics;
use crate::policy;
use crate::pool_directory::PoolDirectory;
use crate::store::{Class, FILE_NAME, Report, Store, StoreError};
use crate::subscribers::Subscribers;

/// How long open connections may take to finish when the daemon stops.
const GRACE: Duration = Duration::from_secs(8);
/// How often what is said by jobs that can go on elsewhere is written down.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// How often old jobs are looked for.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another orchestrator owns the state root.
    #[error("another orchestrator uses {home} already ({owner}); stop it, or give --home another folder")]
    InUse {
        /// The state root.
        home: PathBuf,
        /// What the lock file says of the owner.
        owner: String,
    },
    /// The state root could not be made or locked.
    #[error("{home} cannot be used: {error}")]
    Home {
        /// The state root.
        home: PathBuf,
        /// The system's words.
        error: std::io::Error,
    },
    /// The port is taken, or the address is not this machine's.
    #[error("cannot listen on {bind}: {error}; stop the other program, or give --bind another port")]
    Bind {
        /// The address.
        bind: SocketAddr,
        /// The system's words.
        error: std::io::Error,
    },
    /// The configured policy was not taken.
    #[error("the configured policy was not taken: {0}")]
    Policy(api_types::ErrorDetail),
    /// The database cannot be used.
    #[error("{}: {error}{}", path.display(), advice(error.class()))]
    Store {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: StoreError,
    },
    /// The thread of the driver could not be started.
    #[error("the driver's thread could not be started: {0}")]
    Thread(std::io::Error),
}

/// What to do about a database that cannot be used.
const fn advice(class: Class) -> &'static str {
    match class {
        Class::Full => "; free some space on its disk and start again",
        Class::Busy => "; end the program that holds it and start again",
        Class::NotWritable => "; the orchestrator's user must be able to write to the file and its folder",
        Class::Unusable => {
            ". It was left as it is. Restore a copy, or move it away (with its -wal file) to start with an \
             empty one; `rbees-orcd db check` tells more"
        }
        Class::Broken => "; look at the disk before starting again",
    }
}

/// Opens the database of a state root that is locked.
fn open_store(home: &Path) -> Result<Store, StartError> {
    Store::open(home).map_err(|error| StartError::Store { path: home.join(FILE_NAME), error })
}

/// Reads the whole database of a state root that no orchestrator uses.
///
/// # Errors
/// When one does, or something is wrong with the database.
pub fn check_database(home: &Path) -> Result<Report, StartError> {
    let _lock = HomeLock::take(home)?;
    let store = open_store(home)?;
    let unsound = |error| StartError::Store { path: store.path().to_owned(), error };
    store.check().map_err(unsound)
}

/// Why the driver ended while nobody asked it to.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A fault of rbees itself; the database holds everything that was acknowledged.
    #[error("the driver's thread panicked")]
    Panicked,
}

/// A daemon that runs.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// The way to its brain.
    pub driver: Handle,
    closing: CancellationToken,
    actions: Actions,
    serving: JoinHandle<()>,
    driver_ended: oneshot::Receiver<Result<(), StoreError>>,
    _lock: HomeLock,
}

impl Server {
    /// Locks the state root, recovers from the database, and listens.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let lock = HomeLock::take(&config.home)?;
        let listener = TcpListener::bind(config.bind)
            .await
            .map_err(|error| StartError::Bind { bind: config.bind, error })?;
        let address = listener.local_addr().map_err(|error| StartError::Bind { bind: config.bind, error })?;
        let url = config.url.clone().unwrap_or_else(|| own_url(address));
        lock.describe(&url);

        let limits = Limits { connections: affordable(config.limits.connections), ..config.limits };
        let metrics = Metrics::default();
        let closing = CancellationToken::new();
        let mut store = open_store(&config.home)?;
        let path = store.path().to_owned();
        let unusable = |error| StartError::Store { path: path.clone(), error };
        let hash_key = store.hash_key(next_key).map_err(unusable)?;
        let (handle, mailbox) = driver::mailbox(hash_key, store.keeper().clone());
        let (reports, noted) = (handle.clone(), handle.clone());
        let subscribers = Subscribers::new(
            Box::new(move |event| reports.report_later(event)),
            Box::new(move || noted.attend()),
        );
        let runtime = tokio::runtime::Handle::current();
        let token = config.token.as_ref().map(Token::for_workers);
        let pools = PoolDirectory::new(config.home.clone(), url, token);
        let actions = Actions::new(
            runtime,
            handle.clone(),
            subscribers.clone(),
            pools.clone(),
            config.stalls,
            PoolLimits::of(&config.settings.supply),
            metrics.clone(),
        );
        let history = store.history();
        let language = Arc::new(Language::default());
        policy::watch_over(&language).map_err(StartError::Thread)?;
        let driver = Driver::recover(
            config.settings.clone(),
            config.keeping,
            store,
            mailbox,
            actions.clone(),
            language,
            config.wall,
        )
        .map_err(unusable)?;
        let driver_ended = start_driver(driver)?;
        if let Some(text) = config.policy {
            handle.set_policy(PolicyChange::Live(text)).await.map_err(StartError::Policy)?;
        }

        let app = App::new(Parts {
            driver: handle.clone(),
            subscribers,
            history,
            workers: actions.workers.clone(),
            pools: pools.clone(),
            metrics: metrics.clone(),
            limits,
            guard: Guard::new(address, &config.allowed_hosts, config.token.clone()),
            replays: Arc::new(Semaphore::new(1)),
            closing: closing.clone(),
        });
        start_checkpoints(&handle, actions.subscribers.clone(), &closing);
        start_background(&handle, pools, config.pool_interval, &closing);
        let sending = closing.clone();
        let acknowledgements = actions.clone().send_acknowledgements();
        tokio::spawn(async move { sending.run_until_cancelled(acknowledgements).await });
        let serving = tokio::spawn(listener::serve(
            listener,
            Entrance::new(app),
            limits,
            metrics,
            closing.clone(),
            GRACE,
        ));
        Ok(Self { address, driver: handle, closing, actions, serving, driver_ended, _lock: lock })
    }

    /// Waits until the driver ends by itself, which it only does when something failed.
    ///
    /// # Errors
    /// What failed.
    pub async fn driver_failed(&mut self) -> Result<(), DriverError> {
        ended((&mut self.driver_ended).await)
    }

    /// Stops in order: no new connections, open streams end with a comment, the driver writes what
    /// it was told. Runs go on in their workers.
    ///
    /// # Errors
    /// When the last commit fails.
    pub async fn stop(mut self) -> Result<(), DriverError> {
        self.close();
        let _ = (&mut self.serving).await;
        self.actions.stop_relays();
        self.driver.stop();
        ended((&mut self.driver_ended).await)
    }

    /// Ends as a crash would, as far as others can see: nobody is told anything.
    pub async fn crash(mut self) {
        self.actions.stop_relays();
        self.serving.abort();
        let _ = (&mut self.serving).await;
        self.close();
        self.driver.stop();
        let _ = (&mut self.driver_ended).await;
    }

    fn close(&self) {
        self.closing.cancel();
        self.actions.subscribers.close();
    }
}

/// The driver's thread always says how it ended, unless it panicked.
fn ended(said: Result<Result<(), StoreError>, oneshot::error::RecvError>) -> Result<(), DriverError> {
    match said {
        Ok(ended) => Ok(ended?),
        Err(_) => Err(DriverError::Panicked),
    }
}

fn start_driver(driver: Driver) -> Result<oneshot::Receiver<Result<(), StoreError>>, StartError> {
    let (ended, driver_ended) = oneshot::channel();
    std::thread::Builder::new()
        .name("driver".to_owned())
        .spawn(move || {
            let _ = ended.send(driver.run());
        })
        .map_err(StartError::Thread)?;
    Ok(driver_ended)
}

/// Jobs that can go on elsewhere are written down as they speak.
fn start_checkpoints(driver: &Handle, subscribers: Subscribers, closing: &CancellationToken) {
    let (handle, token) = (driver.clone(), closing.clone());
    tokio::spawn(async move {
        while tokio::time::timeout(CHECKPOINT_EVERY, token.cancelled()).await.is_err() {
            if subscribers.has_carried() {
                handle.checkpoint();
            }
        }
    });
}

/// Everything that is done again and again: asking pools, deleting old jobs.
fn start_background(driver: &Handle, pools: PoolDirectory, interval: Duration, closing: &CancellationToken) {
    let (handle, token) = (driver.clone(), closing.clone());
    tokio::spawn(async move {
        pools.register_local(&handle).await;
        pools.reconcile(handle, interval, token).await;
    });
    let (handle, token) = (driver.clone(), closing.clone());
    tokio::spawn(async move {
        while tokio::time::timeout(PRUNE_EVERY, token.cancelled()).await.is_err() {
            handle.prune();
        }
    });
}

/// The URL under which this machine's own programs reach us.
fn own_url(address: SocketAddr) -> String {
    let mut address = address;
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    format!("http://{address}")
}
