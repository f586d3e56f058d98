//! Sessions: one row each, replaced with the commits of their jobs.

use api_types::{SessionId, TenantId};
use orchestrator_core::SessionRow;
use rusqlite::{Connection, Transaction};

use super::StoreError;
use super::record::{read_json, write_json};

/// Writes one that is new or was used.
pub(super) fn put(transaction: &Transaction<'_>, row: &SessionRow) -> Result<(), StoreError> {
    let detail = write_json("sessions.detail", row)?;
    transaction
        .prepare_cached("INSERT OR REPLACE INTO sessions (tenant, session_id, detail) VALUES (?1, ?2, ?3)")?
        .execute((row.tenant.as_str(), row.session_id.as_str(), detail))?;
    Ok(())
}

/// Deletes one that is forgotten.
pub(super) fn delete(
    transaction: &Transaction<'_>,
    tenant: &TenantId,
    session_id: &SessionId,
) -> Result<(), StoreError> {
    transaction
        .prepare_cached("DELETE FROM sessions WHERE tenant = ?1 AND session_id = ?2")?
        .execute((tenant.as_str(), session_id.as_str()))?;
    Ok(())
}

/// Reads all of them.
pub(super) fn load(connection: &Connection) -> Result<Vec<SessionRow>, StoreError> {
    let mut statement = connection.prepare("SELECT detail FROM sessions ORDER BY tenant, session_id")?;
    let mut found = statement.query([])?;
    let mut sessions = Vec::new();
    while let Some(row) = found.next()? {
        sessions.push(read_json("sessions.detail", &row.get::<_, String>(0)?)?);
    }
    Ok(sessions)
}
