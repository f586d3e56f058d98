//! `rbees` as people and scripts use it.

mod command_line;
mod down;
mod pools;
mod program;
#[path = "../../../../crates/clients/tests/sshd/mod.rs"]
mod sshd;
