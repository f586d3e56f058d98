//! The policies in force: shown, tried, changed. A script that does not compile, or fails when it is
//! tried, changes nothing.

pub mod replay;

use std::collections::BTreeMap;

use api_types::policy::{
    DemotedPolicy, PolicyCheck, PolicyError, PolicyReport, PolicyView, PutPolicy, PutShadow, ShadowExample,
    ShadowReport,
};
use api_types::{ErrorBody, ErrorCode, ErrorDetail};
use axum::Json;
use axum::extract::State;
use orchestrator_core::policy::{Hook, MAX_SCORED, PolicyChange, PolicyStanding, PolicyText, Tally};
use policy_script::Language;
use policy_script::check::{check, error_view, in_words};
use serde_json::json;

use super::body::Body;
use super::{ApiError, App};
use crate::policy::text;

/// Characters of a policy's name.
const NAME_CHARS: usize = 64;

/// The policies in force and how they do.
#[utoipa::path(get, path = "/v2/policy", tag = "policy", responses((status = 200, body = PolicyReport)))]
pub async fn get_policy(State(app): State<App>) -> Result<Json<PolicyReport>, ApiError> {
    report(&app).await
}

/// Makes a policy the live one, if it passes the check. The last good one answers where it fails, and
/// comes back with a rollback.
#[utoipa::path(put, path = "/v2/policy", tag = "policy", request_body = PutPolicy,
    responses((status = 200, body = PolicyReport), (status = 422, body = ErrorBody)))]
pub async fn put_policy(
    State(app): State<App>,
    Body(policy): Body<PutPolicy>,
) -> Result<Json<PolicyReport>, ApiError> {
    change(&app, PolicyChange::Live(tried(&app, policy).await?)).await
}

/// Compiles a script and tries it on the workers that serve now; changes nothing.
#[utoipa::path(post, path = "/v2/policy/check", tag = "policy", request_body = PutPolicy,
    responses((status = 200, body = PolicyCheck), (status = 422, body = ErrorBody)))]
pub async fn check_policy(
    State(app): State<App>,
    Body(policy): Body<PutPolicy>,
) -> Result<Json<PolicyCheck>, ApiError> {
    let name = named(&policy)?.to_owned();
    let source = policy.source.ok_or_else(|| invalid("source", "a check needs the script as `source`"))?;
    Ok(Json(dry_run(&app, name, source).await?))
}

/// What a script says of the workers that serve now, or of made-up ones where none does.
async fn dry_run(app: &App, name: String, source: String) -> Result<PolicyCheck, ApiError> {
    let workers = app.driver.read(|brain, now| brain.sample_workers(MAX_SCORED, now)).await?;
    blocking(move || check(&name, &source, &workers)).await
}

/// Lets a policy decide beside the live one, without effect, or ends that.
#[utoipa::path(put, path = "/v2/policy/shadow", tag = "policy", request_body = PutShadow,
    responses((status = 200, body = PolicyReport), (status = 422, body = ErrorBody)))]
pub async fn put_shadow(
    State(app): State<App>,
    Body(shadow): Body<PutShadow>,
) -> Result<Json<PolicyReport>, ApiError> {
    let text = match shadow.policy {
        Some(policy) => Some(tried(&app, policy).await?),
        None => None,
    };
    change(&app, PolicyChange::Shadow(text)).await
}

/// Makes the shadow the live policy.
#[utoipa::path(post, path = "/v2/policy/promote", tag = "policy",
    responses((status = 200, body = PolicyReport), (status = 404, body = ErrorBody)))]
pub async fn promote_policy(State(app): State<App>) -> Result<Json<PolicyReport>, ApiError> {
    change(&app, PolicyChange::Promote).await
}

/// Makes the last good policy the live one again.
#[utoipa::path(post, path = "/v2/policy/rollback", tag = "policy",
    responses((status = 200, body = PolicyReport), (status = 404, body = ErrorBody)))]
pub async fn rollback_policy(State(app): State<App>) -> Result<Json<PolicyReport>, ApiError> {
    change(&app, PolicyChange::Rollback).await
}

async fn change(app: &App, change: PolicyChange) -> Result<Json<PolicyReport>, ApiError> {
    app.driver.set_policy(change).await?;
    report(app).await
}

async fn report(app: &App) -> Result<Json<PolicyReport>, ApiError> {
    let standing = app.driver.read(|brain, _| brain.policies()).await?;
    Ok(Json(report_of(standing)))
}

/// The text of a policy that compiles and passes its dry run.
async fn tried(app: &App, policy: PutPolicy) -> Result<PolicyText, ApiError> {
    let text = compiled(policy).await?;
    let Some(source) = &text.source else { return Ok(text) };
    let found = dry_run(app, text.name.clone(), source.to_string()).await?;
    match found.errors.into_iter().next() {
        None => Ok(text),
        Some(error) => Err(failed_its_check(&text.name, &error).into()),
    }
}

fn failed_its_check(name: &str, error: &PolicyError) -> ErrorDetail {
    let message = format!("the policy `{name}` failed its check and was not taken: {}", in_words(error));
    ErrorDetail::new(ErrorCode::ScriptError, message)
        .with_field("source")
        .with_details(json!(error))
        .with_hint("`rbees policy check FILE --fleet` shows all that it says and where it fails")
}

/// The text of a policy that compiles.
async fn compiled(policy: PutPolicy) -> Result<PolicyText, ApiError> {
    let name = named(&policy)?.to_owned();
    let Some(source) = policy.source else { return Ok(PolicyText { name, ..PolicyText::built_in() }) };
    let text = text(&name, &source);
    match blocking(move || Language::default().compile(&name, &source).map(drop)).await? {
        Ok(()) => Ok(text),
        Err(failure) => {
            let error = error_view(&failure);
            let detail = ErrorDetail::new(ErrorCode::ScriptError, failure.to_string())
                .with_field("source")
                .with_details(json!(error))
                .with_hint("`rbees policy check FILE` tries a script without setting it");
            Err(detail.into())
        }
    }
}

/// Scripts are compiled and tried where they keep nobody waiting.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| ApiError::new(ErrorCode::Internal, "the script could not be tried"))
}

fn named(policy: &PutPolicy) -> Result<&str, ApiError> {
    let name = policy.name.as_str();
    let good = (1..=NAME_CHARS).contains(&name.chars().count()) && !name.chars().any(char::is_control);
    if good { Ok(name) } else { Err(invalid("name", "a name has 1 to 64 printable characters")) }
}

fn invalid(field: &str, message: &str) -> ApiError {
    ErrorDetail::new(ErrorCode::InvalidField, message).with_field(field).into()
}

fn report_of(standing: PolicyStanding) -> PolicyReport {
    let PolicyStanding { rows, live, shadow, shadow_stopped, demoted } = standing;
    PolicyReport {
        live: view(&rows.live),
        failures: counts(&live.failures),
        last_failure: live.last_failure.as_ref().map(error_view),
        last_good: rows.last_good.as_ref().map(view),
        demoted: rows.demoted.as_ref().map(|text| DemotedPolicy {
            policy: view(text),
            failures: counts(&demoted.failures),
            last_failure: demoted.last_failure.as_ref().map(error_view),
        }),
        shadow: rows.shadow.as_ref().map(|text| shadow_of(text, shadow, shadow_stopped)),
    }
}

fn shadow_of(text: &PolicyText, tally: Tally, stopped: bool) -> ShadowReport {
    let example = |(hook, found): (Hook, orchestrator_core::policy::Difference)| ShadowExample {
        hook: hook.name().to_owned(),
        about: found.about,
        live: found.live,
        shadow: found.shadow,
    };
    ShadowReport {
        policy: view(text),
        stopped,
        compared: counts(&tally.compared),
        differed: counts(&tally.differed),
        failures: counts(&tally.failures),
        last_failure: tally.last_failure.as_ref().map(error_view),
        examples: tally.examples.into_iter().map(example).collect(),
    }
}

fn view(text: &PolicyText) -> PolicyView {
    PolicyView {
        name: text.name.clone(),
        sha256: text.sha256.clone(),
        source: text.source.as_deref().map(str::to_owned),
    }
}

fn counts(of: &BTreeMap<Hook, u64>) -> BTreeMap<String, u64> {
    of.iter().map(|(hook, count)| (hook.name().to_owned(), *count)).collect()
}
