//! What a worker says of itself is believed only where it can be: an address that may be its own, texts
//! and numbers within bounds. What is refused here is not called and not kept.

use std::net::IpAddr;

use api_types::worker::WorkerFacts;
use api_types::{ErrorCode, ErrorDetail};
use clients::is_of_worker;
use http::Uri;

use super::Caller;

/// Bytes of one text at most.
const MAX_TEXT: usize = 512;
/// Items of one list at most.
const MAX_ITEMS: usize = 64;
/// Slots at most.
const MAX_SLOTS: u32 = 4_096;

/// Refuses facts that cannot be, by the first field that is wrong. `from` is who registers, as far as
/// the connection tells.
///
/// # Errors
/// `INVALID_FIELD` with the field and what is allowed.
pub fn check_facts(facts: &WorkerFacts, from: Option<Caller>) -> Result<(), ErrorDetail> {
    check_text("facts.uri", &facts.uri)?;
    check_uri(&facts.uri, from)?;
    if facts.model.is_empty() {
        return Err(wrong("facts.model", "is empty; allowed is the name of a model"));
    }
    let texts = [
        ("facts.model", Some(&facts.model)),
        ("facts.model_ref", facts.model_ref.as_ref()),
        ("facts.backend", Some(&facts.backend)),
        ("facts.quantization", facts.quantization.as_ref()),
        ("facts.tokenizer", facts.tokenizer.as_ref()),
        ("facts.engine", Some(&facts.engine)),
        ("facts.version", Some(&facts.version)),
    ];
    for (field, text) in texts {
        text.map_or(Ok(()), |text| check_text(field, text))?;
    }
    check_list("facts.devices", &facts.devices)?;
    check_list("facts.capabilities", &facts.capabilities)?;
    if !(1..=MAX_SLOTS).contains(&facts.slots) {
        let message = format!("is {}; allowed is 1 to {MAX_SLOTS}", facts.slots);
        return Err(wrong("facts.slots", &message));
    }
    if facts.context_length == 0 {
        return Err(wrong("facts.context_length", "is 0; allowed is at least 1"));
    }
    Ok(())
}

/// Where the worker listens has to be an address that we can call, and that can be its own.
fn check_uri(text: &str, from: Option<Caller>) -> Result<(), ErrorDetail> {
    let allowed = || wrong("facts.uri", &format!("is {text:?}; allowed is http://HOST:PORT"));
    let uri: Uri = text.parse().map_err(|_| allowed())?;
    let authority = uri.authority().ok_or_else(allowed)?;
    let bare = uri.path() == "/" && uri.query().is_none() && !authority.as_str().contains('@');
    if uri.scheme_str() != Some("http") || !bare {
        return Err(allowed());
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let Ok(address) = host.parse::<IpAddr>() else {
        return if is_odd_number(host) { Err(allowed()) } else { check_loopback(host == "localhost", from) };
    };
    if !is_of_worker(address) {
        let message = format!("is {text:?}, an address that no worker has");
        return Err(wrong("facts.uri", &message));
    }
    check_loopback(address.to_canonical().is_loopback(), from)
}

/// Another machine's loopback would be ours.
fn check_loopback(is_loopback: bool, from: Option<Caller>) -> Result<(), ErrorDetail> {
    match from {
        Some(Caller { address: from, is_here: false }) if is_loopback => {
            let message = format!(
                "is a loopback address, and the worker registers from {from}; allowed is one at which this \
                 orchestrator reaches it"
            );
            Err(wrong("facts.uri", &message)
                .with_hint("start the worker with --bind and an address of its machine"))
        }
        _ => Ok(()),
    }
}

/// Whether a system may read it as an address in another notation than the usual one.
fn is_odd_number(host: &str) -> bool {
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    last.is_empty() || last.starts_with("0x") || last.bytes().all(|byte| byte.is_ascii_digit())
}

fn check_list(field: &'static str, items: &[String]) -> Result<(), ErrorDetail> {
    if items.len() > MAX_ITEMS {
        return Err(wrong(field, &format!("has {} items; allowed are {MAX_ITEMS}", items.len())));
    }
    items.iter().try_for_each(|item| check_text(field, item))
}

fn check_text(field: &'static str, text: &str) -> Result<(), ErrorDetail> {
    if text.len() <= MAX_TEXT && !text.contains(char::is_control) {
        return Ok(());
    }
    let message = format!("has {} bytes; allowed are {MAX_TEXT}, without control characters", text.len());
    Err(wrong(field, &message))
}

fn wrong(field: &'static str, what: &str) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::InvalidField, format!("{field} {what}")).with_field(field)
}
