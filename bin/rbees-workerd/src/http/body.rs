//! Reading JSON bodies: bounded in size and time, whatever the content type says.

use std::time::Duration;

use api_types::sampling::FieldProblem;
use api_types::{ErrorCode, ErrorDetail};
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use super::error::ApiError;

/// Largest request body, in bytes.
pub const MAX_BODY: usize = 16 * 1024 * 1024;
/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// A request body read as JSON.
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = read(request.into_body()).await?;
        Ok(Self(parse(&bytes)?))
    }
}

async fn read(body: Body) -> Result<Bytes, ErrorDetail> {
    match tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, MAX_BODY)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => Err(ErrorDetail::new(
            ErrorCode::BodyTooLarge,
            format!("the body did not arrive whole, or is larger than the {MAX_BODY} bytes allowed"),
        )),
        Err(_) => Err(ErrorDetail::new(ErrorCode::RequestTimeout, "the body did not arrive within 30 s")),
    }
}

/// Reads one JSON value; errors name the field, never its content.
///
/// # Errors
/// `INVALID_JSON` or `INVALID_FIELD`.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ErrorDetail> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer)
        .map_err(|error| sorted(&error.path().to_string(), error.inner()))?;
    deserializer.end().map_err(|error| sorted("", &error))?;
    Ok(value)
}

fn sorted(path: &str, error: &serde_json::Error) -> ErrorDetail {
    if error.classify() != Category::Data {
        let place = format!("line {} column {}", error.line(), error.column());
        return ErrorDetail::new(ErrorCode::InvalidJson, format!("the body is not JSON: {place}"))
            .with_hint("send one JSON object");
    }
    let message = error.to_string();
    if let Some((name, allowed)) = unknown_field(&message) {
        return FieldProblem::new(
            name,
            "unknown_field",
            format!("{name} is no field here; allowed are {allowed}"),
        )
        .into();
    }
    if let Some(name) = quoted_after(&message, "missing field `") {
        return FieldProblem::new(name, "missing", format!("{name} is missing")).into();
    }
    let expected = message.rsplit(", expected ").next().and_then(|rest| rest.split(" at line ").next());
    let expected = expected.filter(|_| message.contains(", expected ")).unwrap_or("another value");
    let (field, name) = if path == "." { ("", "the body") } else { (path, path) };
    FieldProblem::new(field, "wrong_type", format!("{name} cannot be read; expected {expected}")).into()
}

fn unknown_field(message: &str) -> Option<(&str, &str)> {
    let name = quoted_after(message, "unknown field `")?;
    let allowed = message.split("expected one of ").nth(1).and_then(|rest| rest.split(" at line ").next());
    Some((name, allowed.unwrap_or("those of the API's description")))
}

fn quoted_after<'a>(message: &'a str, before: &str) -> Option<&'a str> {
    message.strip_prefix(before)?.split('`').next()
}

#[cfg(test)]
mod tests {
    use api_types::worker::ExecuteRequest;

    use super::*;

    fn error(body: &str) -> ErrorDetail {
        parse::<ExecuteRequest>(body.as_bytes()).expect_err(body)
    }

    #[test]
    fn problems_are_named_without_quoting_content() {
        let unknown = error(r#"{"job_id":"j","temprature":1}"#);
        assert_eq!((unknown.code, unknown.field.as_deref()), (ErrorCode::InvalidField, Some("temprature")));
        let typed = error(r#"{"job_id":"j","max_tokens":"a secret text"}"#);
        assert_eq!((typed.code, typed.field.as_deref()), (ErrorCode::InvalidField, Some("max_tokens")));
        assert!(typed.message.contains("u32") && !typed.message.contains("secret"), "{}", typed.message);
        assert_eq!(error(r#"{"prompt":"x"}"#).field.as_deref(), Some("job_id"));
        for broken in ["", "{", "nonsense", r#"{"job_id":"j"} x"#] {
            assert_eq!(error(broken).code, ErrorCode::InvalidJson, "{broken}");
        }
        assert_eq!(error("[]").code, ErrorCode::InvalidField);
    }
}
