//! What form the text of an answer must have.

use std::borrow::Cow;
use std::sync::Arc;

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::sampling::FieldProblem;

/// Largest JSON schema, in bytes without the white space between its parts.
pub const MAX_SCHEMA_BYTES: usize = 128 * 1024;
/// Any JSON object.
const ANY_OBJECT: &str = r#"{"type":"object"}"#;
const SCHEMA_FIELD: &str = "response_format.json_schema.schema";

/// What the text must be. Tokens that would break the form are never drawn; an answer that `max_tokens`
/// or a stop string cuts short ends where it is cut.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ResponseFormat {
    /// Which form.
    #[serde(rename = "type")]
    pub kind: FormatKind,
    /// The schema; only, and always, with `json_schema`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub json_schema: Option<JsonSchema>,
}

/// The forms there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum FormatKind {
    /// Any text.
    #[default]
    Text,
    /// One JSON object.
    JsonObject,
    /// JSON that a schema describes.
    JsonSchema,
}

/// A schema and what it is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JsonSchema {
    /// Its name; for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it is for; for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// A JSON schema: an object. The properties of an object come in the order in which they stand
    /// here. A keyword that cannot be enforced is refused.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub schema: SchemaText,
    /// Whether every answer must validate. Every answer does, whatever this says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

/// JSON kept as it was written, because the order of its keys means something; only white space
/// between its parts is dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaText(Arc<str>);

impl SchemaText {
    /// The JSON.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&Value> for SchemaText {
    fn from(schema: &Value) -> Self {
        Self(schema.to_string().into())
    }
}

impl Serialize for SchemaText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_json::from_str::<&RawValue>(&self.0).map_err(S::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SchemaText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Box::<RawValue>::deserialize(deserializer).map_err(D::Error::custom)?;
        Ok(Self(without_white_space(json.get()).into()))
    }
}

/// JSON without the white space between its parts.
fn without_white_space(json: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    let kept = json.chars().filter(|letter| {
        if in_string {
            in_string = escaped || *letter != '"';
            escaped = !escaped && *letter == '\\';
            return true;
        }
        in_string = *letter == '"';
        !letter.is_ascii_whitespace()
    });
    kept.collect()
}

impl ResponseFormat {
    /// JSON that `schema` describes.
    pub fn of_schema(schema: &Value) -> Self {
        let json_schema = JsonSchema { name: None, description: None, schema: schema.into(), strict: None };
        Self { kind: FormatKind::JsonSchema, json_schema: Some(json_schema) }
    }

    /// The schema that the text must follow; nothing for `text`.
    pub fn schema(&self) -> Option<Cow<'_, str>> {
        match self.kind {
            FormatKind::Text => None,
            FormatKind::JsonObject => Some(Cow::Borrowed(ANY_OBJECT)),
            FormatKind::JsonSchema => {
                self.json_schema.as_ref().map(|format| Cow::Borrowed(format.schema.as_str()))
            }
        }
    }

    /// What can be said of it without compiling the schema.
    ///
    /// # Errors
    /// The field that is wrong.
    pub fn check(&self) -> Result<(), FieldProblem> {
        match (self.kind, &self.json_schema) {
            (FormatKind::JsonSchema, Some(format)) => check_schema(format.schema.as_str()),
            (FormatKind::JsonSchema, None) => {
                let message = "a response_format of type json_schema needs json_schema with the schema";
                Err(FieldProblem::new("response_format.json_schema", "missing", message))
            }
            (_, Some(_)) => {
                let message = "json_schema is given, but response_format.type is not json_schema";
                Err(FieldProblem::new("response_format.json_schema", "conflict", message))
            }
            (_, None) => Ok(()),
        }
    }
}

/// One object, not too large and not nested deeper than a JSON reader goes.
fn check_schema(schema: &str) -> Result<(), FieldProblem> {
    if schema.len() > MAX_SCHEMA_BYTES {
        let message =
            format!("the schema has {} bytes; at most {MAX_SCHEMA_BYTES} are allowed", schema.len());
        return Err(FieldProblem::new(SCHEMA_FIELD, "too_long", message));
    }
    if !schema.starts_with('{') {
        let message = "the schema is not an object; allowed is a JSON schema such as {\"type\": \"object\"}";
        return Err(FieldProblem::new(SCHEMA_FIELD, "wrong_type", message));
    }
    match serde_json::from_str::<Value>(schema) {
        Ok(_) => Ok(()),
        Err(_) => Err(FieldProblem::new(
            SCHEMA_FIELD,
            "out_of_range",
            "the schema is nested too deep, or holds a number that no reader can hold",
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(json: &str) -> Result<ResponseFormat, serde_json::Error> {
        serde_json::from_str(json)
    }

    fn refusal(json: &str) -> (String, &'static str) {
        let problem = read(json).expect("well formed").check().expect_err(json);
        (problem.field, problem.reason)
    }

    #[test]
    fn a_schema_stays_as_it_was_written_but_for_white_space() {
        let text = r#"{"type":"json_schema","json_schema":{"name":"n","schema": {"z" : [1, 2.50],
            "a\" b":" \\" , "m":"x  y"},"strict":true}}"#;
        let format = read(text).expect("a format");
        let schema = r#"{"z":[1,2.50],"a\" b":" \\","m":"x  y"}"#;
        assert_eq!(format.schema().as_deref(), Some(schema));
        assert_eq!(format.check(), Ok(()));
        let written = serde_json::to_string(&format).expect("JSON");
        assert!(written.contains(schema), "{written}");
        assert_eq!(read(&written).expect("what was written"), format);
        let value: Value = serde_json::from_str(&written).expect("JSON");
        assert_eq!(ResponseFormat::deserialize(&value).expect("a format").kind, FormatKind::JsonSchema);
    }

    #[test]
    fn text_asks_for_nothing_and_an_object_for_any() {
        assert_eq!(read(r#"{"type":"text"}"#).expect("text").schema(), None);
        assert_eq!(read(r#"{"type":"json_object"}"#).expect("object").schema().as_deref(), Some(ANY_OBJECT));
        let schema = json!({ "type": "integer" });
        assert_eq!(ResponseFormat::of_schema(&schema).schema().as_deref(), Some(r#"{"type":"integer"}"#));
    }

    #[test]
    fn what_cannot_be_a_format_is_refused_by_name() {
        assert!(read(r#"{"type":"xml"}"#).is_err());
        assert!(read(r#"{"type":"text","schema":{}}"#).is_err());
        assert_eq!(refusal(r#"{"type":"json_schema"}"#), ("response_format.json_schema".into(), "missing"));
        assert_eq!(
            refusal(r#"{"type":"json_object","json_schema":{"schema":{}}}"#),
            ("response_format.json_schema".into(), "conflict")
        );
        let with = |schema: &str| format!(r#"{{"type":"json_schema","json_schema":{{"schema":{schema}}}}}"#);
        assert_eq!(refusal(&with("[]")), (SCHEMA_FIELD.into(), "wrong_type"));
        assert_eq!(refusal(&with("true")), (SCHEMA_FIELD.into(), "wrong_type"));
        let deep = "{\"not\":".repeat(200) + "{}" + &"}".repeat(200);
        assert_eq!(refusal(&with(&deep)), (SCHEMA_FIELD.into(), "out_of_range"));
        let large = format!("{{\"title\":\"{}\"}}", "x".repeat(MAX_SCHEMA_BYTES));
        assert_eq!(refusal(&with(&large)), (SCHEMA_FIELD.into(), "too_long"));
    }
}
