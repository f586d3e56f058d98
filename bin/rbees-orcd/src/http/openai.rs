//! OpenAI's dialect: translation onto the same jobs, nothing else.

pub mod chat;
pub mod completions;
pub mod error;
mod key;
pub mod models;
mod request;
mod run;

pub use self::key::IdempotencyKey;
