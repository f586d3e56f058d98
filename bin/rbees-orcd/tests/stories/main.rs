//! Stories over the daemon with its real router on a port of the system's choice, and a scripted
//! worker where one is needed.

mod bad_input;
mod cancel;
mod daemon;
mod guard;
mod idempotency;
mod migrations;
mod openai;
mod openapi;
mod restart;
mod resume;
mod submit;
mod worker;
