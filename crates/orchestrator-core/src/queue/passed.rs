//! Who was looked at in one turn and passed over, because the policy keeps workers free of them.

use std::collections::{BTreeMap, BTreeSet};

use api_types::task::Priority;
use api_types::{JobId, TenantId};

use super::group::Group;
use super::lanes::Flow;
use crate::row::JobRow;

/// Jobs of one flow that are passed over before the flow is, of those with the same demands.
const OF_FLOW: usize = 2;
/// Jobs of one tenant that are passed over before the tenant is.
const OF_TENANT: usize = 4;
/// Jobs of one class that are passed over before all others with the same demands are.
const OF_GROUP: usize = 16;
/// Jobs of one model that are passed over before a turn looks no further.
const OF_MODEL: usize = 128;

/// See the module. One job that may not run yet is in nobody's way: the next of its flow is looked at,
/// then the next flow, then the next tenant, each so far and no further, so that a turn stays short.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    interactive: BTreeMap<Group, OfGroup>,
    batch: BTreeMap<Group, OfGroup>,
    jobs: usize,
}

/// Of one class and with one set of demands.
#[derive(Debug, Default)]
pub(super) struct OfGroup {
    jobs: BTreeSet<JobId>,
    tenants: BTreeMap<TenantId, OfTenant>,
}

#[derive(Debug, Default)]
struct OfTenant {
    jobs: usize,
    flows: BTreeMap<Flow, usize>,
}

impl Passed {
    /// Passes over a job. Returns whether the turn may look further.
    pub fn pass_over(&mut self, row: &JobRow) -> bool {
        let groups = match row.priority {
            Priority::Interactive => &mut self.interactive,
            Priority::Batch => &mut self.batch,
        };
        let of_group = groups.entry(Group::of(row)).or_default();
        of_group.jobs.insert(row.job_id);
        let of_tenant = of_group.tenants.entry(row.tenant.clone()).or_default();
        of_tenant.jobs += 1;
        *of_tenant.flows.entry(row.session_id.clone()).or_default() += 1;
        self.jobs += 1;
        self.jobs < OF_MODEL
    }

    /// Who was passed over of a group, if anybody was.
    pub(super) fn of(&self, priority: Priority, group: &Group) -> Option<&OfGroup> {
        match priority {
            Priority::Interactive => self.interactive.get(group),
            Priority::Batch => self.batch.get(group),
        }
    }
}

impl OfGroup {
    /// Whether no further job is looked at.
    pub fn is_over(&self) -> bool {
        self.jobs.len() >= OF_GROUP
    }

    /// Whether no further job of this tenant is looked at.
    pub fn is_tenant_over(&self, tenant: &TenantId) -> bool {
        self.tenants.get(tenant).is_some_and(|of_tenant| of_tenant.jobs >= OF_TENANT)
    }

    /// Whether no further job of this flow is looked at.
    pub fn is_flow_over(&self, tenant: &TenantId, flow: &Flow) -> bool {
        let of_flow = self.tenants.get(tenant).and_then(|of_tenant| of_tenant.flows.get(flow));
        of_flow.is_some_and(|jobs| *jobs >= OF_FLOW)
    }

    /// Whether this job was passed over.
    pub fn has(&self, job_id: JobId) -> bool {
        self.jobs.contains(&job_id)
    }
}
