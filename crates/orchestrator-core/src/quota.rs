//! What a tenant may use at one time: jobs in service, jobs waiting, tokens per minute.

use std::collections::BTreeMap;

use api_types::{ErrorCode, ErrorDetail, TenantId};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::time::Time;

/// Milliseconds over which a quota of tokens is spread.
const MINUTE_MS: i64 = 60_000;

/// The shares and bounds of tenants.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quotas {
    /// Of those that have no entry of their own.
    pub default: Quota,
    /// Of these.
    pub tenants: BTreeMap<TenantId, Quota>,
}

/// The share and bounds of one tenant; `None` is without bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Jobs that workers may hold for it at one time; more wait and are in nobody's way.
    pub concurrency: Option<u64>,
    /// Jobs that may wait; more are refused.
    pub queued: Option<u64>,
    /// Tokens of prompt and output per minute, of which one minute's worth may be saved up; more
    /// are refused. A single job may be larger than that: it is admitted when the minute is whole.
    pub tokens_per_minute: Option<u64>,
    /// Its share of a contended queue relative to the others'; at least 1. Default 1.
    pub weight: u32,
}

impl Default for Quota {
    fn default() -> Self {
        Self { concurrency: None, queued: None, tokens_per_minute: None, weight: 1 }
    }
}

impl Quotas {
    /// The quota of a tenant.
    pub fn of(&self, tenant: &TenantId) -> &Quota {
        self.tenants.get(tenant).unwrap_or(&self.default)
    }
}

/// What each tenant uses at the moment.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Tenants(BTreeMap<TenantId, Usage>);

#[derive(Debug, Default, Serialize, Deserialize)]
struct Usage {
    waiting: u64,
    in_service: u64,
    bucket: Option<Bucket>,
}

/// A bucket of tokens that fills evenly and holds a minute's worth, in thousandths of a token times
/// 60: what drips in each millisecond is the quota itself.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Bucket {
    level: i64,
    filled_at: Time,
}

impl Tenants {
    /// Refuses a job of `tokens` that is over what its tenant may have waiting or use per minute.
    /// `spread` makes callers who are refused together return apart.
    pub fn check(
        &self,
        quotas: &Quotas,
        tenant: &TenantId,
        tokens: u64,
        spread: u64,
        now: Time,
    ) -> Result<(), ErrorDetail> {
        let quota = quotas.of(tenant);
        let usage = self.0.get(tenant);
        let waiting = usage.map_or(0, |usage| usage.waiting);
        if let Some(limit) = quota.queued.filter(|limit| waiting >= *limit) {
            return Err(too_many_wait(tenant, waiting, limit).with_retry_after_ms(1_000 + spread));
        }
        let Some(per_minute) = quota.tokens_per_minute else { return Ok(()) };
        let Some(bucket) = usage.and_then(|usage| usage.bucket) else { return Ok(()) };
        let wait_ms = bucket.wait_ms(tokens, per_minute, now);
        if wait_ms == 0 {
            return Ok(());
        }
        Err(too_many_tokens(tenant, tokens, per_minute).with_retry_after_ms(wait_ms))
    }

    /// Jobs of this tenant that wait, and that workers hold.
    pub fn waiting_and_running(&self, tenant: &TenantId) -> (u64, u64) {
        self.0.get(tenant).map_or((0, 0), |usage| (usage.waiting, usage.in_service))
    }

    /// Takes the tokens of an admitted job out of its tenant's minute.
    pub fn reserve(&mut self, quotas: &Quotas, tenant: &TenantId, tokens: u64, now: Time) {
        let Some(per_minute) = quotas.of(tenant).tokens_per_minute else { return };
        let usage = self.0.entry(tenant.clone()).or_default();
        let bucket = usage.bucket.unwrap_or(Bucket { level: full(per_minute), filled_at: now });
        let level = bucket.level_at(per_minute, now).saturating_sub(units(tokens));
        usage.bucket = Some(Bucket { level, filled_at: now });
    }

    /// A job for which `reserved` tokens were taken has cost `spent`.
    pub fn settle(&mut self, quotas: &Quotas, tenant: &TenantId, reserved: u64, spent: u64, now: Time) {
        if let Some(per_minute) = quotas.of(tenant).tokens_per_minute
            && let Some(usage) = self.0.get_mut(tenant)
            && let Some(bucket) = usage.bucket
        {
            let back = units(reserved).saturating_sub(units(spent));
            let level = bucket.level_at(per_minute, now).saturating_add(back).min(full(per_minute));
            usage.bucket = (level < full(per_minute)).then_some(Bucket { level, filled_at: now });
        }
        self.forget(tenant);
    }

    /// One more job waits.
    pub fn wait(&mut self, tenant: &TenantId) {
        self.0.entry(tenant.clone()).or_default().waiting += 1;
    }

    /// A waiting job left, to be served or for good.
    pub fn stop_waiting(&mut self, tenant: &TenantId) {
        if let Some(usage) = self.0.get_mut(tenant) {
            usage.waiting = usage.waiting.saturating_sub(1);
        }
        self.forget(tenant);
    }

    /// A worker holds one job more. Returns whether the tenant may have no further one.
    pub fn begin_service(&mut self, quotas: &Quotas, tenant: &TenantId) -> bool {
        let usage = self.0.entry(tenant.clone()).or_default();
        usage.in_service += 1;
        quotas.of(tenant).concurrency.is_some_and(|limit| usage.in_service >= limit)
    }

    /// A worker holds one job less. Returns whether the tenant may have another one.
    pub fn end_service(&mut self, quotas: &Quotas, tenant: &TenantId) -> bool {
        let Some(usage) = self.0.get_mut(tenant) else { return true };
        usage.in_service = usage.in_service.saturating_sub(1);
        let may = quotas.of(tenant).concurrency.is_none_or(|limit| usage.in_service < limit);
        self.forget(tenant);
        may
    }

    fn forget(&mut self, tenant: &TenantId) {
        let unused = |usage: &Usage| usage.waiting == 0 && usage.in_service == 0 && usage.bucket.is_none();
        if self.0.get(tenant).is_some_and(unused) {
            self.0.remove(tenant);
        }
    }
}

impl Bucket {
    fn level_at(&self, per_minute: u64, now: Time) -> i64 {
        let dripped = signed(now.since(self.filled_at)).saturating_mul(signed(per_minute));
        self.level.saturating_add(dripped).min(full(per_minute))
    }

    /// Milliseconds until a job of `tokens` is admitted.
    fn wait_ms(&self, tokens: u64, per_minute: u64, now: Time) -> u64 {
        let needed = units(tokens).min(full(per_minute));
        let missing = needed.saturating_sub(self.level_at(per_minute, now)).max(0);
        missing.unsigned_abs().div_ceil(per_minute.max(1))
    }
}

fn full(per_minute: u64) -> i64 {
    units(per_minute)
}

fn units(tokens: u64) -> i64 {
    signed(tokens).saturating_mul(MINUTE_MS)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn too_many_wait(tenant: &TenantId, waiting: u64, limit: u64) -> ErrorDetail {
    let message = format!("{waiting} jobs of the tenant `{tenant}` wait already; its quota is {limit}.");
    ErrorDetail::new(ErrorCode::QuotaExceeded, message)
        .with_details(json!({ "tenant": tenant, "quota": "queued", "limit": limit, "waiting": waiting }))
        .with_hint(format!("Try again later, or raise `queued` in [quotas.tenants.{tenant}]."))
}

fn too_many_tokens(tenant: &TenantId, tokens: u64, limit: u64) -> ErrorDetail {
    let message = format!(
        "The job may take {tokens} tokens, and the tenant `{tenant}` has used up its {limit} tokens per minute."
    );
    ErrorDetail::new(ErrorCode::QuotaExceeded, message)
        .with_details(
            json!({ "tenant": tenant, "quota": "tokens_per_minute", "limit": limit, "tokens": tokens }),
        )
        .with_hint(format!(
            "Try again after the pause, ask for fewer `max_tokens`, or raise `tokens_per_minute` in \
             [quotas.tenants.{tenant}]."
        ))
}

#[cfg(test)]
#[allow(clippy::expect_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quotas(per_minute: u64) -> Quotas {
        let default = Quota { tokens_per_minute: Some(per_minute), ..Quota::default() };
        Quotas { default, tenants: BTreeMap::new() }
    }

    fn pause(tenants: &Tenants, quotas: &Quotas, tokens: u64, now: Time) -> Option<u64> {
        tenants.check(quotas, &TenantId::default(), tokens, 0, now).err().map(|error| {
            assert_eq!(error.code, ErrorCode::QuotaExceeded);
            error.retry_after_ms.expect("always given")
        })
    }

    #[test]
    fn what_was_reserved_and_not_spent_comes_back() {
        let (mut tenants, quotas, tenant, now) =
            (Tenants::default(), quotas(600), TenantId::default(), Time(5));
        tenants.reserve(&quotas, &tenant, 500, now);
        assert_eq!(pause(&tenants, &quotas, 200, now), Some(10_000));
        tenants.settle(&quotas, &tenant, 500, 100, now);
        assert_eq!(pause(&tenants, &quotas, 500, now), None);
        assert_eq!(pause(&tenants, &quotas, 501, now), Some(100));
    }

    #[test]
    fn a_job_larger_than_the_minute_waits_for_a_whole_one_and_then_pays_its_debt() {
        let (mut tenants, quotas, tenant) = (Tenants::default(), quotas(600), TenantId::default());
        tenants.reserve(&quotas, &tenant, 1_200, Time(0));
        assert_eq!(pause(&tenants, &quotas, 1, Time(0)), Some(60_100));
        assert_eq!(pause(&tenants, &quotas, 5_000, Time(60_000)), Some(60_000));
        assert_eq!(pause(&tenants, &quotas, 5_000, Time(120_000)), None);
    }

    proptest! {
        /// However jobs come, no more tokens are admitted in any stretch of time than it is long,
        /// plus one minute's worth; and the pause that is named is exactly long enough.
        #[test]
        fn the_minute_is_never_overdrawn(
            per_minute in 60_u64..100_000,
            jobs in prop::collection::vec((0_u64..30_000, 1_u64..2_000), 1..60),
        ) {
            let (mut tenants, quotas, tenant) =
                (Tenants::default(), quotas(per_minute), TenantId::default());
            let (mut now, mut admitted) = (Time(0), 0);
            for (pause_ms, tokens) in jobs {
                let tokens = tokens.min(per_minute);
                now = now + pause_ms;
                if let Some(wait_ms) = pause(&tenants, &quotas, tokens, now) {
                    prop_assert!(pause(&tenants, &quotas, tokens, now + (wait_ms - 1)).is_some());
                    now = now + wait_ms;
                }
                prop_assert_eq!(pause(&tenants, &quotas, tokens, now), None);
                tenants.reserve(&quotas, &tenant, tokens, now);
                admitted += tokens;
                prop_assert!(admitted <= per_minute + (now.0 * per_minute).div_ceil(60_000));
            }
        }
    }
}
