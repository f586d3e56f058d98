//! The policies in force, at most one row for each part they play.

use orchestrator_core::policy::{PolicyRows, PolicyText};
use rusqlite::{Connection, OptionalExtension, Transaction};

use super::StoreError;

const LIVE: &str = "live";
const LAST_GOOD: &str = "last_good";
const SHADOW: &str = "shadow";
const DEMOTED: &str = "demoted";

/// Writes all of them.
pub(super) fn put(transaction: &Transaction<'_>, rows: &PolicyRows) -> Result<(), StoreError> {
    transaction.execute("DELETE FROM policies", ())?;
    let parts = [
        (LIVE, Some(&rows.live)),
        (LAST_GOOD, rows.last_good.as_ref()),
        (SHADOW, rows.shadow.as_ref()),
        (DEMOTED, rows.demoted.as_ref()),
    ];
    for (part, text) in parts {
        let Some(text) = text else { continue };
        transaction
            .prepare_cached("INSERT INTO policies (part, name, source, sha256) VALUES (?1, ?2, ?3, ?4)")?
            .execute((part, &text.name, text.source.as_deref(), &text.sha256))?;
    }
    Ok(())
}

/// Reads all of them; where none was ever set, the built-in one is live.
pub(super) fn load(connection: &Connection) -> Result<PolicyRows, StoreError> {
    Ok(PolicyRows {
        live: part(connection, LIVE)?.unwrap_or_else(PolicyText::built_in),
        last_good: part(connection, LAST_GOOD)?,
        shadow: part(connection, SHADOW)?,
        demoted: part(connection, DEMOTED)?,
    })
}

fn part(connection: &Connection, part: &str) -> Result<Option<PolicyText>, StoreError> {
    let text = connection
        .prepare_cached("SELECT name, source, sha256 FROM policies WHERE part = ?1")?
        .query_row([part], |row| {
            let source: Option<String> = row.get(1)?;
            Ok(PolicyText { name: row.get(0)?, source: source.map(Into::into), sha256: row.get(2)? })
        })
        .optional()?;
    Ok(text)
}
