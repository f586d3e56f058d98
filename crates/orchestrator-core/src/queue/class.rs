//! The waiting jobs of one model and one class: shared fairly between tenants, then between each
//! tenant's flows.

use std::collections::BTreeMap;

use api_types::task::Priority;
use api_types::{JobId, TenantId};
use serde::{Deserialize, Serialize};

use super::group::Group;
use super::lanes::{Flow, Head, Lanes, Spot};
use super::line::{Place, Ticket};
use super::passed::Passed;
use super::ranks::Ranks;
use super::shares::{Lift, Moved, Shares};
use crate::row::JobRow;

/// Virtual tokens to a token of a tenant with weight 1.
const SCALE: u64 = 1_024;

/// See the module. A pick and a change cost `O(g log n)` for `g` different demands among the
/// waiting.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Class {
    tenants: Shares<TenantId>,
    /// Of the tenants that wait.
    flows: BTreeMap<TenantId, Shares<Flow>>,
    groups: BTreeMap<Group, Lanes>,
    /// The places of each flow, whatever the demands of their jobs.
    places: BTreeMap<TenantId, BTreeMap<Flow, Ranks<Place>>>,
    /// Of the same jobs those that have aged.
    aged: BTreeMap<Group, Lanes>,
    tickets: BTreeMap<JobId, Waiting>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Waiting {
    ticket: Ticket,
    aged: bool,
}

/// What a job was charged with at its dispatch, for the settlement at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Charge {
    /// Tokens, prompt and output.
    pub tokens: u64,
    /// The tenant's weight.
    pub weight: u32,
    tenant_serial: u64,
    flow_serial: u64,
}

impl Default for Class {
    fn default() -> Self {
        Self {
            tenants: Shares::new(Lift::Minimum),
            flows: BTreeMap::new(),
            groups: BTreeMap::new(),
            places: BTreeMap::new(),
            aged: BTreeMap::new(),
            tickets: BTreeMap::new(),
        }
    }
}

impl Class {
    /// Adds a job. `serial` is larger than any before.
    pub fn push(&mut self, row: &JobRow, ticket: Ticket, blocked: bool, serial: u64) {
        self.tenants.join(&row.tenant, serial, blocked);
        let flows = self.flows.entry(row.tenant.clone()).or_insert_with(|| Shares::new(Lift::Pace));
        flows.join(&row.session_id, serial, false);
        self.line_up(row, ticket, false);
    }

    /// A waiting job ages: under a new ticket it is one of those that may go before another class.
    pub fn age(&mut self, row: &JobRow, ticket: Ticket) {
        if self.take(row, false) {
            self.line_up(row, ticket, true);
        }
    }

    fn line_up(&mut self, row: &JobRow, ticket: Ticket, aged: bool) {
        self.tickets.insert(row.job_id, Waiting { ticket, aged });
        let group = Group::of(row);
        let spot = spot(&self.tenants, &self.flows, row);
        if aged {
            self.aged.entry(group.clone()).or_default().push(&spot, &ticket);
        }
        self.groups.entry(group).or_default().push(&spot, &ticket);
        let flows = self.places.entry(row.tenant.clone()).or_default();
        flows.entry(row.session_id.clone()).or_default().insert(ticket.place);
    }

    /// Takes a job out that leaves unserved. Returns whether it was there.
    pub fn remove(&mut self, row: &JobRow) -> bool {
        let removed = self.take(row, false);
        if removed {
            self.leave(row);
        }
        removed
    }

    /// Takes a job out to serve it, and charges its tenant and flow.
    pub fn serve(&mut self, row: &JobRow, tokens: u64, weight: u32) -> Option<Charge> {
        if !self.take(row, true) {
            return None;
        }
        let shared = tokens.saturating_mul(SCALE);
        let (moved, tenant_serial) = self.tenants.charge(&row.tenant, shared / u64::from(weight.max(1)))?;
        self.move_tenant(&row.tenant, moved);
        let (moved, flow_serial) = self.flows.get_mut(&row.tenant)?.charge(&row.session_id, shared)?;
        self.move_flow(row, moved);
        self.leave(row);
        Some(Charge { tokens, weight, tenant_serial, flow_serial })
    }

    /// A job that was charged has cost so many tokens.
    pub fn settle(&mut self, row: &JobRow, charge: &Charge, tokens: u64) {
        let more = signed(tokens.saturating_mul(SCALE), charge.tokens.saturating_mul(SCALE));
        let weighted = more / i64::from(charge.weight.max(1));
        if let Some(moved) = self.tenants.settle(&row.tenant, charge.tenant_serial, weighted) {
            self.move_tenant(&row.tenant, moved);
        }
        let flows = self.flows.get_mut(&row.tenant);
        if let Some(moved) = flows.and_then(|f| f.settle(&row.session_id, charge.flow_serial, more)) {
            self.move_flow(row, moved);
        }
    }

    /// The next job, leaving out groups that are known to fit no worker at the moment, and who was
    /// passed over.
    pub fn head<'a>(&'a self, priority: Priority, passed: &Passed) -> Option<(&'a Group, JobId)> {
        first(self.groups.iter().filter(|(_, lanes)| !lanes.is_unfit), priority, passed)
    }

    /// Each group with the job whose turn it is in it.
    pub fn heads(&self) -> impl Iterator<Item = (&Group, JobId)> {
        self.groups.iter().filter_map(|(group, lanes)| Some((group, lanes.head()?.job_id)))
    }

    /// The next of the aged jobs.
    pub fn aged_head<'a>(&'a self, priority: Priority, passed: &Passed) -> Option<(&'a Group, JobId)> {
        let is_fit = |group: &Group| self.groups.get(group).is_some_and(|lanes| !lanes.is_unfit);
        first(self.aged.iter().filter(|(group, _)| is_fit(group)), priority, passed)
    }

    /// No open worker meets the demands of this group.
    pub fn set_unfit(&mut self, group: &Group) {
        if let Some(lanes) = self.groups.get_mut(group) {
            lanes.is_unfit = true;
        }
    }

    /// A worker has opened that may meet the demands of some groups.
    pub fn lift_unfit(&mut self, is_met: impl Fn(&Group) -> bool) {
        let unfit = self.groups.iter_mut().filter(|(_, lanes)| lanes.is_unfit);
        unfit.filter(|(group, _)| is_met(group)).for_each(|(_, lanes)| lanes.is_unfit = false);
    }

    /// A tenant may not be served for now.
    pub fn block(&mut self, tenant: &TenantId) {
        let Some(at) = self.tenants.block(tenant) else { return };
        self.all_lanes().for_each(|lanes| lanes.block(tenant, at));
    }

    /// A tenant may be served again. Returns whether any of its jobs wait here.
    pub fn unblock(&mut self, tenant: &TenantId) -> bool {
        let Some(at) = self.tenants.unblock(tenant) else { return false };
        self.all_lanes().for_each(|lanes| lanes.unblock(tenant, at));
        true
    }

    /// Jobs that wait.
    pub fn len(&self) -> u64 {
        self.tickets.len() as u64
    }

    /// Whether any job waits that may be served.
    pub fn is_servable(&self) -> bool {
        self.tenants.sharers() > 0
    }

    /// Jobs that would be served before one that joined now, if all jobs cost the same.
    pub fn before_new(&self, tenant: &TenantId, flow: &Flow) -> u64 {
        let in_flow = self.flows.get(tenant).map_or(0, |flows| flows.jobs(flow));
        self.before(tenant, in_flow, u64::from(in_flow == 0), u64::from(self.tenants.jobs(tenant) == 0))
    }

    /// Jobs that would be served before this waiting one, if all jobs cost the same.
    pub fn position(&self, row: &JobRow) -> u64 {
        let Some(waiting) = self.tickets.get(&row.job_id) else { return 0 };
        let Some(lanes) = self.groups.get(&Group::of(row)) else { return 0 };
        let place = lanes.served_in(&row.tenant, &row.session_id, &waiting.ticket);
        let of_flow = self.places.get(&row.tenant).and_then(|flows| flows.get(&row.session_id));
        let in_flow = of_flow.map_or(0, |places| places.rank(&place));
        self.before(&row.tenant, in_flow, 0, 0).min(self.len().saturating_sub(1))
    }

    /// In each round every tenant is served once, and in each of a tenant's rounds every flow.
    fn before(&self, tenant: &TenantId, in_flow: u64, new_flow: u64, new_tenant: u64) -> u64 {
        let flows = self.flows.get(tenant).map_or(0, Shares::sharers) + new_flow;
        let of_tenant = self.tenants.jobs(tenant);
        let in_tenant = in_flow.saturating_add(1).saturating_mul(flows).saturating_sub(1).min(of_tenant);
        let tenants = self.tenants.sharers() + new_tenant;
        in_tenant.saturating_add(1).saturating_mul(tenants.max(1)).saturating_sub(1).min(self.len())
    }

    fn take(&mut self, row: &JobRow, to_serve: bool) -> bool {
        let Some(waiting) = self.tickets.remove(&row.job_id) else { return false };
        let group = Group::of(row);
        let spot = spot(&self.tenants, &self.flows, row);
        if waiting.aged {
            take_from(&mut self.aged, &group, &spot, &waiting.ticket, to_serve);
        }
        if let Some(place) = take_from(&mut self.groups, &group, &spot, &waiting.ticket, to_serve) {
            self.forget_place(row, &place);
        }
        true
    }

    fn forget_place(&mut self, row: &JobRow, place: &Place) {
        let Some(flows) = self.places.get_mut(&row.tenant) else { return };
        let Some(places) = flows.get_mut(&row.session_id) else { return };
        places.remove(place);
        if places.is_empty() {
            flows.remove(&row.session_id);
        }
        if flows.is_empty() {
            self.places.remove(&row.tenant);
        }
    }

    fn leave(&mut self, row: &JobRow) {
        self.tenants.leave(&row.tenant);
        if self.tenants.jobs(&row.tenant) == 0 {
            self.flows.remove(&row.tenant);
        } else if let Some(flows) = self.flows.get_mut(&row.tenant) {
            flows.leave(&row.session_id);
        }
    }

    fn move_tenant(&mut self, tenant: &TenantId, moved: Moved) {
        self.all_lanes().for_each(|lanes| lanes.move_tenant(tenant, moved));
    }

    fn move_flow(&mut self, row: &JobRow, moved: Moved) {
        self.all_lanes().for_each(|lanes| lanes.move_flow(&row.tenant, &row.session_id, moved));
    }

    fn all_lanes(&mut self) -> impl Iterator<Item = &mut Lanes> {
        self.groups.values_mut().chain(self.aged.values_mut())
    }
}

fn spot<'a>(
    tenants: &Shares<TenantId>,
    flows: &BTreeMap<TenantId, Shares<Flow>>,
    row: &'a JobRow,
) -> Spot<'a> {
    Spot {
        tenant: &row.tenant,
        tenant_at: (!tenants.is_blocked(&row.tenant)).then(|| tenants.counter(&row.tenant)),
        flow: &row.session_id,
        flow_at: flows.get(&row.tenant).map_or(0, |flows| flows.counter(&row.session_id)),
    }
}

fn take_from(
    groups: &mut BTreeMap<Group, Lanes>,
    group: &Group,
    spot: &Spot<'_>,
    ticket: &Ticket,
    to_serve: bool,
) -> Option<Place> {
    let lanes = groups.get_mut(group)?;
    let place = lanes.take(spot, ticket, to_serve);
    if lanes.is_empty() {
        groups.remove(group);
    }
    place
}

fn first<'a>(
    groups: impl Iterator<Item = (&'a Group, &'a Lanes)>,
    priority: Priority,
    passed: &Passed,
) -> Option<(&'a Group, JobId)> {
    let head = |(group, lanes): (&'a Group, &'a Lanes)| match passed.of(priority, group) {
        None => Some((lanes.head()?, group)),
        Some(passed) => Some((lanes.head_past(passed)?, group)),
    };
    groups.filter_map(head).min().map(|(Head { job_id, .. }, group)| (group, job_id))
}

/// `to - from`, as far as it can be told.
fn signed(to: u64, from: u64) -> i64 {
    let size = i64::try_from(to.abs_diff(from)).unwrap_or(i64::MAX);
    if to < from { -size } else { size }
}
