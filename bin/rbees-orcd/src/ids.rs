//! The only randomness of the daemon.

use api_types::{CorrelationId, JobId};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// A fresh job id; ids sort by creation.
pub fn next_job_id() -> JobId {
    JobId::from_uuid(Uuid::now_v7())
}

/// A fresh correlation id, for a request that brought none.
pub fn next_correlation_id() -> CorrelationId {
    let text = Uuid::new_v4().simple().to_string();
    // 32 hex digits always are a correlation id.
    text.parse().unwrap_or_else(|_| unreachable!("hex digits are accepted"))
}

/// A seed for a request that named none.
///
/// JavaScript reads numbers exactly only up to 53 bits, so a drawn seed stays below that.
pub fn next_seed() -> u64 {
    Uuid::new_v4().as_u64_pair().0 >> 11
}

/// A secret of 16 bytes.
pub fn next_key() -> [u8; 16] {
    // Two UUIDs of version 4 hold 244 random bits; what of them is fixed is hashed away.
    let digest =
        Sha256::new_with_prefix(Uuid::new_v4().as_bytes()).chain_update(Uuid::new_v4().as_bytes()).finalize();
    std::array::from_fn(|at| digest[at])
}

/// Twelve hex digits, the tail of a worker's id.
pub fn next_worker_suffix() -> String {
    let mut text = Uuid::new_v4().simple().to_string();
    text.truncate(12);
    text
}
