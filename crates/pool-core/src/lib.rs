//! The pool's decisions, as values: what to fetch and from where, what fits, how a worker is
//! started, stopped and found again.
//!
//! Nothing here touches a file, a process, a clock or the network; `pool-host` does that and
//! asks here what to do.

pub mod catalog;
pub mod choose;
pub mod fit;
mod nearest;
pub mod reconcile;
pub mod reference;
pub mod shipped;
pub mod spawn;
pub mod worker_record;

pub use catalog::{Catalog, Registration};
pub use nearest::nearest;
pub use reference::{ModelRef, PypiRef};
