//! Bodies: read within limits, as JSON whatever the content type, refused with the field's path.

use api_types::{ErrorCode, ErrorDetail};
use axum::extract::{FromRequest, Request};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use super::{ApiError, App};
use crate::config::Limits;

/// Most bytes of a body that is too large which are read and dropped before it is refused.
const DROPPED_BYTES: usize = 64 * 1024 * 1024;

/// The bytes of a body.
#[derive(Debug)]
pub struct Raw(pub Bytes);

impl FromRequest<App> for Raw {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        Self::of(request, app.limits).await
    }
}

impl Raw {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// `BODY_TOO_LARGE`, or `REQUEST_TIMEOUT` when it does not arrive in time.
    pub async fn of<B>(request: http::Request<B>, limits: Limits) -> Result<Self, ApiError>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        read(request, limits).await.map(Self)
    }
}

/// A JSON body.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<App> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let bytes = read(request, app.limits).await?;
        Ok(Self(parse(&bytes)?))
    }
}

async fn read<B>(request: http::Request<B>, limits: Limits) -> Result<Bytes, ApiError>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let declared = request.headers().get(http::header::CONTENT_LENGTH);
    let declared = declared.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let asks_first = request.headers().contains_key(http::header::EXPECT);
    if declared.is_some_and(|length| length > limits.body_bytes) && asks_first {
        return Err(too_large(limits.body_bytes));
    }
    match tokio::time::timeout(limits.body_time, collect(request.into_body(), limits.body_bytes)).await {
        Ok(body) => body,
        Err(_) => {
            let message = format!("the body did not arrive within {} ms", limits.body_time.as_millis());
            Err(ApiError::new(ErrorCode::RequestTimeout, message))
        }
    }
}

/// A body of up to `limit` bytes. What is longer is read on for a while and dropped: a client
/// that still sends when the connection closes would never see the answer.
async fn collect<B>(mut body: B, limit: usize) -> Result<Bytes, ApiError>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let expected = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    let Some(first) = body.frame().await else { return Ok(Bytes::new()) };
    let first = first.map_err(|_| cut_short())?.into_data().unwrap_or_default();
    let mut length = first.len();
    if length <= limit && body.is_end_stream() {
        // All of it came at once, as short ones do.
        return Ok(first);
    }
    let mut kept = BytesMut::new();
    if length <= limit {
        kept.reserve(expected.min(limit));
        kept.extend_from_slice(&first);
    }
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| cut_short())?;
        let Ok(data) = frame.into_data() else { continue };
        length = length.saturating_add(data.len());
        if length <= limit {
            kept.extend_from_slice(&data);
        } else {
            kept = BytesMut::new();
        }
        if length > limit.saturating_add(DROPPED_BYTES) {
            break;
        }
    }
    if length > limit { Err(too_large(limit)) } else { Ok(kept.freeze()) }
}

fn cut_short() -> ApiError {
    ApiError::new(ErrorCode::RequestTimeout, "the body ended before all of it arrived")
}

/// Reads JSON; says which field is wrong, and how.
///
/// # Errors
/// `INVALID_JSON` for what is not JSON, `INVALID_FIELD` for what is not the type asked for.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // Serde would take an array for a struct's fields in order.
    if !starts_object(bytes) {
        return Err(match serde_json::from_slice::<serde::de::IgnoredAny>(bytes) {
            Ok(_) => no_object(),
            Err(error) => not_json(bytes, &error),
        });
    }
    // Keeping track of the path costs as much as reading; it is only wanted for refusals.
    if let Ok(value) = serde_json::from_slice(bytes) {
        return Ok(value);
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        // A field may be refused before the body breaks off behind it, or inside a schema.
        match serde_json::from_slice::<serde::de::IgnoredAny>(bytes) {
            Err(broken) if error.inner().is_data() => not_json(bytes, &broken),
            _ => refused(bytes, &error),
        }
    })?;
    reader.end().map_err(|error| not_json(bytes, &error))?;
    Ok(value)
}

/// Reads a value that is JSON already; says which field is wrong, and how.
///
/// # Errors
/// As [`parse`].
pub fn from_value<T: DeserializeOwned>(value: &serde_json::Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(value).map_err(|error| refused(b"{", &error))
}

fn refused(bytes: &[u8], error: &serde_path_to_error::Error<serde_json::Error>) -> ApiError {
    let cause = error.inner();
    if !cause.is_data() {
        return not_json(bytes, cause);
    }
    let text = without_position(&cause.to_string());
    let path = dotted(error.path());
    let unknown = text.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`'));
    let duplicate = text.strip_prefix("duplicate field `").and_then(|rest| rest.split('`').next());
    let (reason, field) = match unknown {
        Some((name, _)) => ("unknown_field", join(&path, name)),
        None if duplicate.is_some() => ("duplicate", join(&path, duplicate.unwrap_or_default())),
        None if text.starts_with("missing field") => ("missing", path),
        None => ("wrong_type", path),
    };
    let mut detail = ErrorDetail::new(ErrorCode::InvalidField, message(reason, &field, &text))
        .with_details(serde_json::json!({ "reason": reason }))
        .with_hint(hint(unknown));
    if field != "." {
        detail = detail.with_field(field);
    }
    ApiError(detail)
}

fn message(reason: &str, field: &str, text: &str) -> String {
    match reason {
        "unknown_field" => format!("{field} is not a field of this request; {}", after_comma(text)),
        "duplicate" => format!("{field} is given twice; give it once"),
        "missing" => text.to_owned(),
        _ => format!("{field}: {text}"),
    }
}

fn after_comma(text: &str) -> &str {
    text.split_once(", ").map_or(text, |(_, rest)| rest)
}

/// For an unknown field the nearest known one, where one is near.
fn hint(unknown: Option<(&str, &str)>) -> String {
    let nearest = unknown.and_then(|(name, rest)| {
        let known = rest.split('`').skip(1).step_by(2);
        known
            .map(|known| (crate::config::distance(known, name), known))
            .min()
            .filter(|(distance, _)| *distance <= name.chars().count().div_ceil(4).min(3))
    });
    match nearest {
        Some((_, known)) => format!("did you mean `{known}`?"),
        None => "GET /openapi.json describes every request".to_owned(),
    }
}

/// A path as every other refusal writes it: `messages.0.content`; `.` for the body itself.
fn dotted(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let parts = path.iter().map(|segment| match segment {
        Segment::Seq { index } => index.to_string(),
        Segment::Map { key } => key.clone(),
        Segment::Enum { variant } => variant.clone(),
        Segment::Unknown => "?".to_owned(),
    });
    let text = parts.collect::<Vec<_>>().join(".");
    if text.is_empty() { ".".to_owned() } else { text }
}

/// The path of `name` inside `path`, whose last part serde may already have named.
fn join(path: &str, name: &str) -> String {
    if path == "." || path.is_empty() {
        return name.to_owned();
    }
    if path == name || path.ends_with(&format!(".{name}")) {
        return path.to_owned();
    }
    format!("{path}.{name}")
}

fn not_json(bytes: &[u8], error: &serde_json::Error) -> ApiError {
    let message = if bytes.is_empty() {
        "the body is empty; a JSON object is needed".to_owned()
    } else {
        let reason = not_json_because(bytes, error);
        format!("the body is not JSON: {reason} (line {}, column {})", error.line(), error.column())
    };
    invalid_json(message)
}

/// Serde's words for what is wrong with the syntax; they hold nothing of the text.
fn not_json_because(bytes: &[u8], error: &serde_json::Error) -> String {
    match std::str::from_utf8(bytes) {
        Ok(_) => without_position(&error.to_string()),
        Err(error) => format!("it is not UTF-8 at byte {}", error.valid_up_to()),
    }
}

fn no_object() -> ApiError {
    invalid_json("the body is JSON, but not one object".to_owned())
}

fn invalid_json(message: String) -> ApiError {
    ApiError::new(ErrorCode::InvalidJson, message)
        .with_hint("send one JSON object, such as {\"prompt\": \"Hello\"}")
}

/// Whether a body could be one JSON object.
pub fn starts_object(bytes: &[u8]) -> bool {
    bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{')
}

/// Serde quotes values in type errors; a prompt may be such a value.
fn without_position(text: &str) -> String {
    let text = text.rsplit_once(" at line ").map_or(text, |(before, _)| before);
    match (text.find("string \""), text.rfind("\", expected")) {
        (Some(start), Some(end)) if start < end => {
            format!("{}string{}", text.get(..start).unwrap_or(""), text.get(end + 1..).unwrap_or(""))
        }
        _ => text.to_owned(),
    }
}

fn too_large(limit: usize) -> ApiError {
    ApiError::new(ErrorCode::BodyTooLarge, format!("the body is larger than {limit} bytes"))
        .with_hint("send a shorter prompt, or raise body_limit_bytes in orchestrator.toml")
}
