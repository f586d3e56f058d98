//! Objects of JSON files, asked field by field.

use serde_json::{Map, Value};

use crate::error::ConvertError;

/// An object of a file, which says in its errors where it stands.
#[derive(Clone, Copy)]
pub(crate) struct Object<'a> {
    pub(crate) file: &'static str,
    pub(crate) fields: &'a Map<String, Value>,
}

impl<'a> Object<'a> {
    /// The field, unless it is absent or null.
    pub(crate) fn get(self, key: &str) -> Option<&'a Value> {
        self.fields.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn object(self, key: &str) -> Result<Option<Self>, ConvertError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(Self { file: self.file, fields })),
            Some(_) => Err(self.wrong(key, "is not an object", "an object")),
        }
    }

    pub(crate) fn text(self, key: &str) -> Result<Option<&'a str>, ConvertError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| self.wrong(key, "is not text", "text")),
        }
    }

    pub(crate) fn truth(self, key: &str) -> Result<Option<bool>, ConvertError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value
                .as_bool()
                .map(Some)
                .ok_or_else(|| self.wrong(key, "is neither true nor false", "true or false")),
        }
    }

    /// A whole number from 1 to `most`.
    pub(crate) fn count(self, key: &str, most: u64) -> Result<Option<u64>, ConvertError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_u64().filter(|number| (1..=most).contains(number));
        number.map(Some).ok_or_else(|| {
            self.wrong(key, &format!("is {value}"), &format!("a whole number from 1 to {most}"))
        })
    }

    pub(crate) fn needed(self, key: &str, most: u64) -> Result<u64, ConvertError> {
        self.count(key, most)?
            .ok_or_else(|| self.wrong(key, "is missing", &format!("a whole number from 1 to {most}")))
    }

    /// A finite number above 0.
    pub(crate) fn number(self, key: &str) -> Result<Option<f64>, ConvertError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value
            .as_f64()
            .filter(|number| number.is_finite() && *number > 0.0 && *number < 1e18)
            .map(Some)
            .ok_or_else(|| self.wrong(key, &format!("is {value}"), "a finite number above 0"))
    }

    pub(crate) fn needed_number(self, key: &str) -> Result<f64, ConvertError> {
        self.number(key)?.ok_or_else(|| self.wrong(key, "is missing", "a finite number above 0"))
    }

    /// Numbers above 0, `length` of them.
    pub(crate) fn numbers(self, key: &str, length: u64) -> Result<Vec<f32>, ConvertError> {
        let wrong = || self.wrong(key, "does not fit the heads", &format!("{length} numbers above 0"));
        let list = self.get(key).and_then(Value::as_array).ok_or_else(wrong)?;
        let numbers: Option<Vec<f32>> = list
            .iter()
            .map(|value| value.as_f64().map(|number| number as f32).filter(|n| n.is_finite() && *n > 0.0))
            .collect();
        numbers.filter(|numbers| numbers.len() as u64 == length).ok_or_else(wrong)
    }

    pub(crate) fn wrong(self, key: &str, problem: &str, allowed: &str) -> ConvertError {
        ConvertError::malformed(self.file, format!("{key} {problem}"), allowed)
    }
}
