//! Brings a database file to the tables this build expects.

use rusqlite::{Connection, TransactionBehavior};

use super::StoreError;

/// Marks a database file as ours ("rbee" in ASCII).
const APPLICATION_ID: i32 = 0x7262_6565;

/// One numbered change of the tables. Its number is its place in the list, from 1.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// Its name, for messages.
    pub name: &'static str,
    /// What it does.
    pub sql: &'static str,
}

/// Every change so far, oldest first. A released one never changes; what follows is appended.
pub const MIGRATIONS: &[Migration] = &[
    Migration {
        name: "0001_jobs_workers_pools",
        sql: include_str!("migrations/0001_jobs_workers_pools.sql"),
    },
    Migration { name: "0002_kept_requests", sql: include_str!("migrations/0002_kept_requests.sql") },
];

/// Applies what is missing, each change in its own transaction together with its number, so that
/// a process killed half-way leaves the state before or after a change, never between.
///
/// # Errors
/// When the file is of a newer rbees or of another program, or SQLite fails.
pub fn migrate(connection: &mut Connection, migrations: &[Migration]) -> Result<(), StoreError> {
    let applied = applied(connection, migrations)?;
    for (number, migration) in (1_i64..).zip(migrations).skip(applied) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction
            .execute_batch(migration.sql)
            .map_err(|error| StoreError::Migration { name: migration.name, error })?;
        transaction.pragma_update(None, "user_version", number)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.commit()?;
    }
    Ok(())
}

/// How many migrations the file has seen.
fn applied(connection: &Connection, migrations: &[Migration]) -> Result<usize, StoreError> {
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let application: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if application != APPLICATION_ID && (tables > 0 || version > 0) {
        return Err(StoreError::Foreign);
    }
    let known = migrations.len();
    match usize::try_from(version) {
        Ok(version) if version <= known => Ok(version),
        _ => Err(StoreError::Newer { found: version, known }),
    }
}
