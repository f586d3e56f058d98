//! The waiting jobs of one class that fit the same workers, sorted by whose turn it is.

use std::collections::{BTreeMap, BTreeSet};

use api_types::{JobId, SessionId, TenantId};
use serde::{Deserialize, Serialize};

use super::line::{Line, Place, Ticket};
use super::passed::OfGroup;
use super::shares::Moved;

/// A flow within a tenant: a session, or all its jobs without one.
pub(super) type Flow = Option<SessionId>;

/// Lines by tenant and flow. Counters are kept elsewhere, because tenants and flows share them over
/// all lanes of their class; here stands who may be served, in their order.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Lanes {
    order: BTreeSet<(u64, TenantId)>,
    tenants: BTreeMap<TenantId, Flows>,
    /// Whether no worker was open that meets their demands when that was last looked at, and none has
    /// opened since.
    pub is_unfit: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Flows {
    order: BTreeSet<(u64, Flow)>,
    lines: BTreeMap<Flow, Line>,
}

/// Where a job waits within its class, and how far its tenant and flow are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spot<'a> {
    /// The tenant.
    pub tenant: &'a TenantId,
    /// The tenant's counter; `None` while it may not be served.
    pub tenant_at: Option<u64>,
    /// The flow within the tenant.
    pub flow: &'a Flow,
    /// The flow's counter.
    pub flow_at: u64,
}

/// The job of some lanes whose turn it is. The smallest of several goes first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Head<'a> {
    tenant_at: u64,
    tenant: &'a TenantId,
    flow_at: u64,
    flow: &'a Flow,
    place: Place,
    /// The job.
    pub job_id: JobId,
}

impl Lanes {
    /// Adds a job.
    pub fn push(&mut self, spot: &Spot<'_>, ticket: &Ticket) {
        if let Some(at) = spot.tenant_at {
            self.order.insert((at, spot.tenant.clone()));
        }
        let flows = self.tenants.entry(spot.tenant.clone()).or_default();
        flows.order.insert((spot.flow_at, spot.flow.clone()));
        flows.lines.entry(spot.flow.clone()).or_default().push(ticket);
    }

    /// Takes a job out, to serve it or because it leaves. Gives the place it left by, if it was there.
    pub fn take(&mut self, spot: &Spot<'_>, ticket: &Ticket, to_serve: bool) -> Option<Place> {
        let flows = self.tenants.get_mut(spot.tenant)?;
        let line = flows.lines.get_mut(spot.flow)?;
        let taken = if to_serve { line.serve(ticket) } else { line.remove(ticket) };
        if line.is_empty() {
            flows.lines.remove(spot.flow);
            flows.order.remove(&(spot.flow_at, spot.flow.clone()));
        }
        if flows.lines.is_empty() {
            self.tenants.remove(spot.tenant);
            if let Some(at) = spot.tenant_at {
                self.order.remove(&(at, spot.tenant.clone()));
            }
        }
        taken
    }

    /// The job whose turn it is.
    pub fn head(&self) -> Option<Head<'_>> {
        let (tenant_at, tenant) = self.order.first()?;
        let flows = self.tenants.get(tenant)?;
        let (flow_at, flow) = flows.order.first()?;
        let (place, job_id) = flows.lines.get(flow)?.head()?;
        Some(Head { tenant_at: *tenant_at, tenant, flow_at: *flow_at, flow, place, job_id })
    }

    /// The first job whose turn it is of those that were not passed over. Looks at no more jobs than
    /// were.
    pub fn head_past(&self, passed: &OfGroup) -> Option<Head<'_>> {
        let tenants = self.order.iter().filter(|(_, tenant)| !passed.is_tenant_over(tenant));
        tenants.filter(|_| !passed.is_over()).find_map(|(tenant_at, tenant)| {
            let flows = self.tenants.get(tenant)?;
            let open = flows.order.iter().filter(|(_, flow)| !passed.is_flow_over(tenant, flow));
            open.filter_map(|(flow_at, flow)| Some((flow_at, flow, flows.lines.get(flow)?))).find_map(
                |(flow_at, flow, line)| {
                    let (place, job_id) = line.in_turn().find(|(_, job_id)| !passed.has(*job_id))?;
                    Some(Head { tenant_at: *tenant_at, tenant, flow_at: *flow_at, flow, place, job_id })
                },
            )
        })
    }

    /// A tenant's counter changed.
    pub fn move_tenant(&mut self, tenant: &TenantId, moved: Moved) {
        if self.order.remove(&(moved.from, tenant.clone())) {
            self.order.insert((moved.to, tenant.clone()));
        }
    }

    /// A flow's counter changed.
    pub fn move_flow(&mut self, tenant: &TenantId, flow: &Flow, moved: Moved) {
        let Some(flows) = self.tenants.get_mut(tenant) else { return };
        if flows.order.remove(&(moved.from, flow.clone())) {
            flows.order.insert((moved.to, flow.clone()));
        }
    }

    /// A tenant may not be served for now.
    pub fn block(&mut self, tenant: &TenantId, at: u64) {
        self.order.remove(&(at, tenant.clone()));
    }

    /// A tenant may be served again.
    pub fn unblock(&mut self, tenant: &TenantId, at: u64) {
        if self.tenants.contains_key(tenant) {
            self.order.insert((at, tenant.clone()));
        }
    }

    /// Whether no job waits here.
    pub fn is_empty(&self) -> bool {
        self.tenants.is_empty()
    }

    /// The place in its flow in which a job will be served.
    pub fn served_in(&self, tenant: &TenantId, flow: &Flow, ticket: &Ticket) -> Place {
        let line = self.tenants.get(tenant).and_then(|flows| flows.lines.get(flow));
        line.map_or(ticket.place, |line| line.served_in(ticket))
    }
}
