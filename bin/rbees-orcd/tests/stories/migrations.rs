//! The database over versions of rbees.

use rbees_orcd::store::migrate::{MIGRATIONS, Migration, migrate};
use rbees_orcd::store::{Store, StoreError};
use rusqlite::Connection;
use tempfile::TempDir;

const NEXT: Migration = Migration { name: "next", sql: "CREATE TABLE next (a INTEGER) STRICT;" };
const BROKEN: Migration = Migration {
    name: "broken",
    sql: "CREATE TABLE half (a INTEGER) STRICT; INSERT INTO nowhere VALUES (1);",
};

fn version(connection: &Connection) -> i64 {
    connection.pragma_query_value(None, "user_version", |row| row.get(0)).expect("a number")
}

fn has_table(connection: &Connection, name: &str) -> bool {
    let sql = "SELECT count(*) FROM sqlite_schema WHERE name = ?1";
    connection.query_row(sql, [name], |row| row.get::<_, i64>(0)).expect("a count") == 1
}

#[test]
fn a_fresh_file_gets_every_table_and_opens_again() {
    let home = TempDir::new().expect("a folder");
    let path = Store::open(home.path()).expect("made").path().to_owned();
    let connection = Connection::open(path).expect("opened");
    assert_eq!(version(&connection), i64::try_from(MIGRATIONS.len()).expect("few"));
    let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).expect("a word");
    assert_eq!(mode, "wal");
    Store::open(home.path()).expect("opened again");
}

#[test]
fn an_older_file_is_brought_up_to_date() {
    let mut connection = Connection::open_in_memory().expect("opened");
    migrate(&mut connection, MIGRATIONS).expect("the first version");
    let newer: Vec<Migration> = MIGRATIONS.iter().copied().chain([NEXT]).collect();
    migrate(&mut connection, &newer).expect("the next version");
    assert_eq!(version(&connection), i64::try_from(newer.len()).expect("few"));
    assert!(has_table(&connection, "next") && has_table(&connection, "jobs"));
}

#[test]
fn a_newer_file_is_refused_with_words() {
    let mut connection = Connection::open_in_memory().expect("opened");
    let newer: Vec<Migration> = MIGRATIONS.iter().copied().chain([NEXT]).collect();
    migrate(&mut connection, &newer).expect("the next version");
    let error = migrate(&mut connection, MIGRATIONS).expect_err("refused");
    assert!(matches!(error, StoreError::Newer { .. }));
    assert!(error.to_string().contains("newer rbees"), "{error}");
    assert!(has_table(&connection, "next"), "nothing was touched");
}

#[test]
fn a_migration_that_breaks_half_way_leaves_nothing() {
    let mut connection = Connection::open_in_memory().expect("opened");
    migrate(&mut connection, MIGRATIONS).expect("the first version");
    let broken: Vec<Migration> = MIGRATIONS.iter().copied().chain([BROKEN]).collect();
    let error = migrate(&mut connection, &broken).expect_err("it is broken");
    assert!(error.to_string().contains("broken"), "{error}");
    assert!(!has_table(&connection, "half"));
    assert_eq!(version(&connection), i64::try_from(MIGRATIONS.len()).expect("few"));
    let mended: Vec<Migration> = MIGRATIONS.iter().copied().chain([NEXT]).collect();
    migrate(&mut connection, &mended).expect("a mended build goes on from there");
}

/// A real process is killed at each of its writes to the database, from the first page to the last
/// of its migrations, until it gets through.
#[test]
fn a_process_killed_in_its_migrations_leaves_a_version_that_the_next_one_goes_on_from() {
    let known = i64::try_from(MIGRATIONS.len()).expect("few");
    let mut found = Vec::new();
    for write in 1.. {
        let home = TempDir::new().expect("a folder");
        let inject = format!("inject=pwrite64:signal=SIGKILL:when={write}");
        let status = std::process::Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=pwrite64", "-e", &inject])
            .args([env!("CARGO_BIN_EXE_rbees-orcd"), "db", "check", "--home"])
            .arg(home.path())
            .output()
            .expect("it ran")
            .status;
        if status.success() {
            break;
        }
        assert!(write < 1_000, "it never got through");
        let connection = Connection::open(home.path().join("orchestrator.db")).expect("opened");
        let version = version(&connection);
        assert!((0..=known).contains(&version));
        let tables: i64 = connection
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
            .expect("a count");
        assert_eq!(tables > 0, version > 0, "write {write} left tables of no version");
        drop(connection);
        Store::open(home.path()).and_then(|store| store.check()).expect("the next one goes on");
        found.push(version);
    }
    assert!(found.iter().filter(|version| **version == 0).count() >= 10, "{found:?}");
    assert!(found.contains(&known), "{found:?}");
}

#[test]
fn a_database_of_another_program_is_left_alone() {
    let mut connection = Connection::open_in_memory().expect("opened");
    connection.execute_batch("CREATE TABLE theirs (a INTEGER);").expect("made");
    assert!(matches!(migrate(&mut connection, MIGRATIONS), Err(StoreError::Foreign)));
}
