//! Every kind of id, parsed and printed with its prefix. Drawing new ones is the shell's business.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Why a text is not the id it claims to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} must be {expected}")]
pub struct InvalidId {
    /// Which kind of id was expected, in words.
    pub kind: &'static str,
    /// The accepted form, in words.
    pub expected: &'static str,
}

/// One unit of work that a client handed in: `job_` and a UUIDv7, so ids sort by creation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(Uuid);

impl JobId {
    const PREFIX: &str = "job_";

    /// Wraps a UUID that the caller drew (a UUIDv7 in the daemon, any number in a simulation).
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// The bare UUID, for storage.
    pub const fn uuid(self) -> Uuid {
        self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Self::PREFIX, self.0.hyphenated())
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for JobId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = InvalidId { kind: "job id", expected: "`job_` followed by a UUID" };
        let uuid = text.strip_prefix(Self::PREFIX).ok_or_else(|| invalid.clone())?;
        if uuid.len() != 36 {
            return Err(invalid);
        }
        Uuid::try_parse(uuid).map(Self).map_err(|_| invalid)
    }
}

/// A process instance, drawn by a worker once at start; two starts never share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(pub Uuid);

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.hyphenated())
    }
}

/// Which try of a job this is, from 1. A message about an older attempt is dropped and counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attempt(pub u32);

impl Attempt {
    /// The first try of a job.
    pub const FIRST: Self = Self(1);

    /// The number after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A number the orchestrator gives each registration of a worker; durable and growing, so that
/// whatever bears a smaller one is known to be late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Defines an id that is a checked text: `$name`, its words for errors, its longest length, and
/// which characters may stand first and later.
macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $expected:literal, $max:literal, $first:expr, $rest:expr) => {
        $(#[$doc])*
        ///
        /// A clone shares the text.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let first: fn(&u8) -> bool = $first;
                let rest: fn(&u8) -> bool = $rest;
                let bytes = text.as_bytes();
                let well_formed = bytes.len() <= $max
                    && bytes.first().is_some_and(first)
                    && bytes.iter().all(rest);
                if well_formed {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidId { kind: $kind, expected: $expected })
                }
            }
        }

        as_text_on_the_wire!($name);
    };
}

/// Serde as the printed text; parsing failures become the field's error.
macro_rules! as_text_on_the_wire {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        #[cfg(feature = "openapi")]
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                String::schema()
            }
        }

        #[cfg(feature = "openapi")]
        impl utoipa::ToSchema for $name {}
    };
}

as_text_on_the_wire!(JobId);

#[cfg(feature = "openapi")]
mod number_schemas {
    use super::{Attempt, Incarnation, InstanceId};

    macro_rules! schema_as {
        ($name:ident, $inner:ty) => {
            impl utoipa::PartialSchema for $name {
                fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                    <$inner as utoipa::PartialSchema>::schema()
                }
            }
            impl utoipa::ToSchema for $name {}
        };
    }

    schema_as!(Attempt, u32);
    schema_as!(Incarnation, u64);
    schema_as!(InstanceId, String);
}

text_id!(
    /// Ties the log lines, errors and streams of one request together; taken from the client's
    /// `X-Correlation-Id` or made by the orchestrator. An id is data and never parsed further.
    CorrelationId,
    "correlation id",
    "1 to 64 characters of A-Z, a-z, 0-9 and `-`",
    64,
    |b| b.is_ascii_alphanumeric() || *b == b'-',
    |b| b.is_ascii_alphanumeric() || *b == b'-'
);

text_id!(
    /// A machine (or part of one) that can run workers, by the name its operator gave it.
    PoolId,
    "pool id",
    "1 to 64 characters of A-Z, a-z, 0-9, `.`, `_` and `-`, starting with a letter or digit",
    64,
    |b| b.is_ascii_alphanumeric(),
    |b| b.is_ascii_alphanumeric() || b"._-".contains(b)
);

text_id!(
    /// A conversation or a series of related jobs, by the name its client gave it.
    SessionId,
    "session id",
    "1 to 128 characters of A-Z, a-z, 0-9, `.`, `_`, `:` and `-`",
    128,
    |b| b.is_ascii_alphanumeric() || b"._:-".contains(b),
    |b| b.is_ascii_alphanumeric() || b"._:-".contains(b)
);

text_id!(
    /// Who jobs are done for; shares are fair between tenants.
    TenantId,
    "tenant id",
    "1 to 64 characters of A-Z, a-z, 0-9, `.`, `_` and `-`, starting with a letter or digit",
    64,
    |b| b.is_ascii_alphanumeric(),
    |b| b.is_ascii_alphanumeric() || b"._-".contains(b)
);

impl Default for TenantId {
    /// The tenant of callers that bring no key of their own.
    fn default() -> Self {
        Self("default".into())
    }
}

text_id!(
    /// One worker process; by convention `worker-<backend>-<12 hex>`.
    WorkerId,
    "worker id",
    "1 to 64 characters of A-Z, a-z, 0-9, `.`, `_` and `-`, starting with a letter or digit",
    64,
    |b| b.is_ascii_alphanumeric(),
    |b| b.is_ascii_alphanumeric() || b"._-".contains(b)
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_id_survives_printing_and_parsing() {
        let id = JobId::from_uuid(Uuid::from_u128(0x0190_1234_5678_7abc_8def_0123_4567_89ab));
        assert_eq!(id.to_string(), "job_01901234-5678-7abc-8def-0123456789ab");
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn ids_of_another_form_are_refused() {
        for text in [
            "",
            "job_",
            "01901234-5678-7abc-8def-0123456789ab",
            "job_0190123456787abc8def0123456789ab",
            "task_1",
        ] {
            assert!(text.parse::<JobId>().is_err(), "{text}");
        }
        for text in ["", "-x", ".x", "a/b", "a b", "../x", &"x".repeat(65)] {
            assert!(text.parse::<WorkerId>().is_err(), "{text}");
            assert!(text.parse::<PoolId>().is_err(), "{text}");
        }
        assert!("a_b".parse::<CorrelationId>().is_err());
        assert!("worker-cpu-0123456789ab".parse::<WorkerId>().is_ok());
        assert!("mac.home.arpa".parse::<PoolId>().is_ok());
    }
}
