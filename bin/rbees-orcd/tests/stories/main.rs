//! Stories over the daemon with its real router on a port of the system's choice, and a scripted
//! worker where one is needed.

mod bad_input;
mod cancel;
mod clock;
mod configuration;
mod daemon;
mod desk;
mod disk;
mod erasure;
mod eta;
mod formats;
#[cfg(target_os = "linux")]
mod gone_client;
mod guard;
mod idempotency;
mod journal;
#[cfg(target_os = "linux")]
mod machine;
#[cfg(target_os = "linux")]
mod many_streams;
#[cfg(target_os = "linux")]
mod memory;
mod migrations;
#[cfg(target_os = "linux")]
mod names;
mod openai;
mod openapi;
mod operator;
mod policy;
mod process;
mod registration;
mod replay;
mod restart;
mod resume;
mod sessions;
mod shutdown;
mod slow_link;
mod slow_reader;
mod stalls;
mod streams;
mod submit;
mod worker;
