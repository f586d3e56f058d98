//! Policies: what decides, how it does, and how a new one is tried.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `PUT /v2/policy`, `POST /v2/policy/check`, and the policy of `PUT /v2/policy/shadow`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PutPolicy {
    /// Its name, for reports: 1 to 64 printable characters.
    pub name: String,
    /// The script; absent is the built-in policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// `PUT /v2/policy/shadow`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PutShadow {
    /// What is to decide beside the live policy; absent ends that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PutPolicy>,
}

/// A policy by its name and text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PolicyView {
    /// Its name.
    pub name: String,
    /// SHA-256 of the script as hex digits; empty for the built-in policy.
    pub sha256: String,
    /// The script; absent for the built-in policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// What is wrong with a script, or what a hook failed with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PolicyError {
    /// The hook; absent when the script does not compile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<String>,
    /// `syntax`, `limit`, `runtime`, `wrong_answer` or `interrupted`.
    pub kind: String,
    /// The limit that was broken: `operations`, `call depth`, `size`, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// What happened.
    pub message: String,
    /// The line in the script, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// The column, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
}

/// `GET /v2/policy`: the policies in force and how they do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PolicyReport {
    /// Decides.
    pub live: PolicyView,
    /// Its failures by hook, since it was set or the orchestrator started.
    pub failures: BTreeMap<String, u64>,
    /// The last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<PolicyError>,
    /// Answers where the live one fails, and comes back with a rollback: the latest before it that
    /// never failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_good: Option<PolicyView>,
    /// Was live until it failed too often; `live` took its place by itself. Absent once a policy is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demoted: Option<DemotedPolicy>,
    /// Decides beside the live one, without effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowReport>,
}

/// A policy that failed too often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DemotedPolicy {
    /// The policy.
    pub policy: PolicyView,
    /// Its failures by hook while it was live; empty after a restart of the orchestrator.
    pub failures: BTreeMap<String, u64>,
    /// The last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<PolicyError>,
}

/// How a shadow policy would have decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ShadowReport {
    /// The shadow.
    pub policy: PolicyView,
    /// Whether it failed too often and is asked no more.
    #[serde(default)]
    pub stopped: bool,
    /// Decisions that both made, by hook.
    pub compared: BTreeMap<String, u64>,
    /// Those that would have differed, by hook.
    pub differed: BTreeMap<String, u64>,
    /// The shadow's own failures, by hook.
    pub failures: BTreeMap<String, u64>,
    /// The last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<PolicyError>,
    /// The latest differences, oldest first.
    pub examples: Vec<ShadowExample>,
}

/// One decision on which live and shadow differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ShadowExample {
    /// The hook.
    pub hook: String,
    /// The job or worker in question.
    pub about: String,
    /// What the live policy said, and what was done.
    pub live: String,
    /// What the shadow said.
    pub shadow: String,
}

/// What a check of a script found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PolicyCheck {
    /// Whether nothing is wrong with it.
    pub ok: bool,
    /// What is wrong.
    pub errors: Vec<PolicyError>,
    /// What may not be meant.
    pub warnings: Vec<String>,
    /// What each hook said in the dry run.
    pub hooks: Vec<HookCheck>,
}

/// One hook in a dry run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HookCheck {
    /// Its name.
    pub hook: String,
    /// Whether the script defines it; if not, the built-in answer holds.
    pub defined: bool,
    /// How often it was asked.
    pub asked: u64,
    /// The first answers, as sentences.
    pub answers: Vec<String>,
}
