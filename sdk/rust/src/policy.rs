//! The orchestrator's policies: shown, tried, changed.

use api_types::policy::{PolicyCheck, PolicyReport, PutPolicy, PutShadow};
use api_types::replay::{ReplayReport, ReplayRequest};
use reqwest::Method;

use crate::client::Client;
use crate::error::Error;

impl Client {
    /// The policies in force and how they do.
    ///
    /// # Errors
    /// When the orchestrator cannot be reached.
    pub async fn policy(&self) -> Result<PolicyReport, Error> {
        self.get("/v2/policy").await
    }

    /// Makes a policy the live one.
    ///
    /// # Errors
    /// `SCRIPT_ERROR` with line and column when it does not compile; nothing is changed then.
    pub async fn set_policy(&self, policy: &PutPolicy) -> Result<PolicyReport, Error> {
        let carrier = self.carrier()?;
        carrier.json(|| carrier.request(Method::PUT, "/v2/policy").json(policy)).await
    }

    /// Compiles a script and tries it on the workers that serve now; changes nothing.
    ///
    /// # Errors
    /// When the orchestrator cannot be reached.
    pub async fn check_policy(&self, policy: &PutPolicy) -> Result<PolicyCheck, Error> {
        let carrier = self.carrier()?;
        carrier.json(|| carrier.request(Method::POST, "/v2/policy/check").json(policy)).await
    }

    /// Decides recorded traffic again: by the policies that were in force, and by another if the
    /// request has one.
    ///
    /// # Errors
    /// As [`Self::check_policy`]; 429 while another replay is at work.
    pub async fn replay_policy(&self, request: &ReplayRequest) -> Result<ReplayReport, Error> {
        let carrier = self.carrier()?;
        carrier.json(|| carrier.request(Method::POST, "/v2/policy/replay").json(request)).await
    }

    /// Lets a policy decide beside the live one, without effect; `None` ends that.
    ///
    /// # Errors
    /// As [`Self::set_policy`].
    pub async fn shadow_policy(&self, policy: Option<PutPolicy>) -> Result<PolicyReport, Error> {
        let carrier = self.carrier()?;
        let shadow = PutShadow { policy };
        carrier.json(|| carrier.request(Method::PUT, "/v2/policy/shadow").json(&shadow)).await
    }

    /// Makes the shadow the live policy.
    ///
    /// # Errors
    /// `POLICY_NOT_FOUND` when there is no shadow.
    pub async fn promote_policy(&self) -> Result<PolicyReport, Error> {
        let carrier = self.carrier()?;
        carrier.json(|| carrier.request(Method::POST, "/v2/policy/promote")).await
    }

    /// Makes the policy before the live one the live one again.
    ///
    /// # Errors
    /// `POLICY_NOT_FOUND` when there was none.
    pub async fn rollback_policy(&self) -> Result<PolicyReport, Error> {
        let carrier = self.carrier()?;
        carrier.json(|| carrier.request(Method::POST, "/v2/policy/rollback")).await
    }
}
