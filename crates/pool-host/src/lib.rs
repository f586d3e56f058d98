//! The pool's hands: the only place that starts processes, downloads models and edits the files
//! of a pool. What to do is decided in `pool-core`; [`Host`] is the façade.

pub mod budget;
mod catalog_file;
pub mod download;
mod errors;
pub mod facts;
pub mod files;
pub mod gpu;
pub mod home;
pub mod host;
mod http;
pub mod hub;
pub mod models;
pub mod processes;
pub mod pypi;
pub mod records;
pub mod spawn;
pub mod stop;
pub mod worker_binary;

pub use home::Home;
pub use host::{Host, Settings};

use std::sync::Arc;

use api_types::pool::Progress;

/// Takes progress as it happens; called from any thread.
pub type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;
