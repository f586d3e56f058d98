//! The registered pools and what each last said: a reconciler asks them at start, on a signal and
//! every so often, and tells the brain which models lie where.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api_types::pool::{Gpu, PoolStatus, PoolView};
use api_types::{ErrorCode, ErrorDetail, PROTOCOL, PoolId};
use clients::pool::{LocalPool, OrchestratorToken, Pool};
use orchestrator_core::PoolRow;
use tokio::sync::{Notify, broadcast};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::driver::Handle;

/// How long a pool may take to say how it is.
const STATUS_TIMEOUT: Duration = Duration::from_secs(25);
/// How long somebody is kept waiting for news of the pools.
const PATIENCE: Duration = Duration::from_secs(3);
/// A pool is asked for somebody's sake at most this often, whatever strangers ask for.
const APART: Duration = Duration::from_secs(1);
/// Name of the pool of this machine.
const LOCAL: &str = "local";

/// Pool news that a slow listener may lag behind before it loses some.
const NEWS: usize = 256;

/// What an operator who watches is told each time a pool was asked.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolNews {
    /// The pool.
    pub pool_id: PoolId,
    /// Whether it answered.
    pub reachable: bool,
    /// Its worker processes.
    pub workers: usize,
    /// Bytes of memory that a new process could take.
    pub ram_available_bytes: u64,
    /// Its GPUs, with memory, temperature and users.
    pub gpus: Vec<Gpu>,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct PoolDirectory {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    home: PathBuf,
    url: String,
    token: Option<OrchestratorToken>,
    seen: Mutex<BTreeMap<PoolId, Seen>>,
    turns: Mutex<BTreeMap<PoolId, Arc<Turns>>>,
    wake: Notify,
    news: broadcast::Sender<PoolNews>,
}

/// What a pool last said.
#[derive(Debug, Clone, Default)]
struct Seen {
    status: Option<PoolStatus>,
    error: Option<ErrorDetail>,
}

/// One after the other asks a pool and tells the brain, so that an older answer never comes after a
/// newer one.
#[derive(Debug, Default)]
struct Turns {
    /// How often it was asked.
    begun: AtomicU64,
    /// When it was last asked.
    asking: tokio::sync::Mutex<Option<Instant>>,
}

impl PoolDirectory {
    /// Knows nothing yet. `url` is where workers reach this orchestrator, `token` what they present.
    pub fn new(home: PathBuf, url: String, token: Option<OrchestratorToken>) -> Self {
        let (seen, turns) = (Mutex::default(), Mutex::default());
        let (wake, news) = (Notify::new(), broadcast::Sender::new(NEWS));
        Self { shared: Arc::new(Shared { home, url, token, seen, turns, wake, news }) }
    }

    /// What workers present to this orchestrator.
    pub fn token(&self) -> Option<OrchestratorToken> {
        self.shared.token.clone()
    }

    /// What pools say, from now on.
    pub fn news(&self) -> broadcast::Receiver<PoolNews> {
        self.shared.news.subscribe()
    }

    /// Where workers reach this orchestrator.
    pub fn url(&self) -> &str {
        &self.shared.url
    }

    /// Asks all pools again, soon.
    pub fn refresh(&self) {
        self.shared.wake.notify_one();
    }

    /// The way to a pool.
    ///
    /// # Errors
    /// When there is no `rbees-pool` here, or the address is not one.
    pub fn carrier(&self, row: &PoolRow) -> Result<Pool, ErrorDetail> {
        match &row.address {
            None => Ok(Pool::Local(LocalPool::find()?.with_home(self.shared.home.clone()))),
            Some(address) => Pool::ssh(address, row.repo_dir.as_deref()),
        }
    }

    /// A registered pool with what it last said.
    pub fn view(&self, row: &PoolRow) -> PoolView {
        let seen = self.lock().get(&row.pool_id).cloned().unwrap_or_default();
        PoolView {
            pool_id: row.pool_id.clone(),
            carrier: if row.address.is_some() { "ssh" } else { LOCAL }.to_owned(),
            address: row.address.clone(),
            reachable: seen.error.is_none() && seen.status.is_some(),
            draining: row.draining,
            status: seen.status,
            error: seen.error,
        }
    }

    /// Asks a pool how it is, and remembers the answer.
    ///
    /// # Errors
    /// When it cannot be asked, or speaks another version.
    pub async fn ask(&self, row: &PoolRow) -> Result<PoolStatus, ErrorDetail> {
        let answer = self.probe(row).await;
        self.remember(&row.pool_id, &answer);
        answer
    }

    /// Asks a pool how it is, without remembering: it may not be registered yet.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn probe(&self, row: &PoolRow) -> Result<PoolStatus, ErrorDetail> {
        let pool = self.carrier(row)?;
        match tokio::time::timeout(STATUS_TIMEOUT, pool.json::<PoolStatus>(&["status"])).await {
            Ok(status) => same_protocol(status?),
            Err(_) => Err(silent(row)),
        }
    }

    /// Forgets what a pool said.
    pub fn forget(&self, pool_id: &PoolId) {
        self.lock().remove(pool_id);
        self.shared.turns.lock().unwrap_or_else(PoisonError::into_inner).remove(pool_id);
    }

    /// Registers the pool of this machine at the first start, when `rbees-pool` lies beside us.
    pub async fn register_local(&self, driver: &Handle) {
        let known = driver.read(|brain, _| !brain.pools().is_empty()).await;
        let (Ok(false), Ok(pool_id), true) = (known, LOCAL.parse(), beside_us()) else { return };
        let row = PoolRow { pool_id, address: None, repo_dir: None, draining: false };
        if let Err(error) = driver.put_pool(row).await {
            tracing::warn!(code = "POOL_NOT_REGISTERED", %error, "the pool of this machine was not registered");
        }
    }

    /// Keeps the brain's knowledge of pools true, until `closing`.
    pub async fn reconcile(self, driver: Handle, interval: Duration, closing: CancellationToken) {
        loop {
            self.ask_all(&driver).await;
            tokio::select! {
                () = closing.cancelled() => return,
                () = self.shared.wake.notified() => {}
                () = tokio::time::sleep(interval) => {}
            }
        }
    }

    /// Asks the pools that answered last time for what is new, as somebody asks for a model that none is
    /// known to have. Returns whether there is any.
    pub async fn look_again(&self, driver: &Handle) -> bool {
        let Ok(rows) = pools(driver).await else { return false };
        let reachable = rows.iter().filter(|row| self.view(row).reachable);
        let asked = reachable.map(|row| tokio::time::timeout(PATIENCE, self.ask_since_now(row, driver)));
        !futures_util::future::join_all(asked).await.is_empty()
    }

    /// Returns once the pool was asked by whomever since this was called.
    async fn ask_since_now(&self, row: &PoolRow, driver: &Handle) {
        let turns = self.turns(&row.pool_id);
        let before = turns.begun.load(Ordering::SeqCst);
        let mut last = turns.asking.lock().await;
        if turns.begun.load(Ordering::SeqCst) > before {
            return;
        }
        if let Some(last) = *last {
            tokio::time::sleep_until(last + APART).await;
        }
        self.ask_and_tell(row, driver, &turns, &mut last).await;
    }

    async fn ask_all(&self, driver: &Handle) {
        let Ok(rows) = pools(driver).await else { return };
        let asked = rows.iter().map(|row| async {
            let turns = self.turns(&row.pool_id);
            let mut last = turns.asking.lock().await;
            self.ask_and_tell(row, driver, &turns, &mut last).await;
        });
        futures_util::future::join_all(asked).await;
    }

    async fn ask_and_tell(&self, row: &PoolRow, driver: &Handle, turns: &Turns, last: &mut Option<Instant>) {
        turns.begun.fetch_add(1, Ordering::SeqCst);
        *last = Some(Instant::now());
        let answer = self.ask(row).await;
        if let Err(error) = &answer {
            tracing::warn!(code = "POOL_UNREACHABLE", pool_id = %row.pool_id, %error, "a pool did not answer");
        }
        driver.pool_answered(&row.pool_id, 0, answer);
    }

    fn turns(&self, pool_id: &PoolId) -> Arc<Turns> {
        let mut all = self.shared.turns.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(pool_id.clone()).or_default())
    }

    /// Keeps what a pool said, until it says something else.
    pub fn remember(&self, pool_id: &PoolId, answer: &Result<PoolStatus, ErrorDetail>) {
        let mut all = self.lock();
        let seen = all.entry(pool_id.clone()).or_default();
        match answer {
            Ok(status) => *seen = Seen { status: Some(status.clone()), error: None },
            Err(error) => seen.error = Some(error.clone()),
        }
        drop(all);
        // Nobody has to watch.
        let _ = self.shared.news.send(news(pool_id, answer.as_ref().ok()));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<PoolId, Seen>> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn pools(driver: &Handle) -> Result<Vec<PoolRow>, ErrorDetail> {
    driver.read(|brain, _| brain.pools().into_iter().cloned().collect()).await
}

fn news(pool_id: &PoolId, status: Option<&PoolStatus>) -> PoolNews {
    PoolNews {
        pool_id: pool_id.clone(),
        reachable: status.is_some(),
        workers: status.map_or(0, |status| status.workers.len()),
        ram_available_bytes: status.map_or(0, |status| status.hardware.ram_available_bytes),
        gpus: status.map_or_else(Vec::new, |status| status.hardware.gpus.clone()),
    }
}

fn beside_us() -> bool {
    let here = std::env::current_exe().ok();
    here.and_then(|exe| exe.parent().map(|folder| folder.join("rbees-pool").is_file())).unwrap_or(false)
}

fn same_protocol(status: PoolStatus) -> Result<PoolStatus, ErrorDetail> {
    if status.protocol == PROTOCOL {
        return Ok(status);
    }
    let message = format!("the pool speaks protocol {} and this orchestrator {PROTOCOL}", status.protocol);
    Err(ErrorDetail::new(ErrorCode::VersionSkew, message)
        .with_hint("install the same version of rbees on both machines"))
}

fn silent(row: &PoolRow) -> ErrorDetail {
    let message = format!("the pool {} did not answer within {} s", row.pool_id, STATUS_TIMEOUT.as_secs());
    ErrorDetail::new(ErrorCode::SshFailed, message)
}
