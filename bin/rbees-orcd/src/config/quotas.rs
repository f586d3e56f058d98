//! The tables `[quotas.default]` and `[quotas.tenants.NAME]`.

use std::collections::BTreeMap;
use std::ops::Range;

use api_types::TenantId;
use orchestrator_core::{Quota, Quotas};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{Key, find, nearest};
use super::layers::{Layers, Origin, Problem, Set, as_text};

/// The table's name.
pub(super) const TABLE: &str = "quotas";
const FIELDS: [&str; 4] = ["concurrency", "queued", "tokens_per_minute", "weight"];

/// What is set for single tenants, by tenant and field.
pub(super) type TenantQuotas = BTreeMap<(String, &'static str), Set>;

impl Layers {
    /// Takes in the whole table of a file. `origin` tells where a piece of it stands.
    pub(super) fn take_quotas(&mut self, value: &DeValue<'_>, origin: &dyn Fn(Range<usize>) -> Origin) {
        let DeValue::Table(parts) = value else {
            return self.problem(origin(0..0), format!("{TABLE} is a table; {}", what_stands_in_it()));
        };
        for (name, part) in in_order(parts) {
            let at = origin(name.span());
            match (name.get_ref().as_ref(), part.get_ref()) {
                ("default", DeValue::Table(quota)) => self.take_quota(None, quota, origin),
                ("tenants", DeValue::Table(tenants)) => self.take_tenants(tenants, origin),
                (other, _) => {
                    self.problem(at, format!("unknown key `{TABLE}.{other}`; {}", what_stands_in_it()));
                }
            }
        }
    }

    fn take_tenants(&mut self, tenants: &DeTable<'_>, origin: &dyn Fn(Range<usize>) -> Origin) {
        for (name, quota) in in_order(tenants) {
            let at = origin(name.span());
            let name = name.get_ref();
            match (name.parse::<TenantId>(), quota.get_ref()) {
                (Ok(_), DeValue::Table(quota)) => self.take_quota(Some(name), quota, origin),
                (Ok(_), _) => self.problem(at, format!("{TABLE}.tenants.{name} has to be a table")),
                (Err(error), _) => self.problem(at, format!("{TABLE}.tenants.{name}: {error}")),
            }
        }
    }

    fn take_quota(
        &mut self,
        tenant: Option<&str>,
        quota: &DeTable<'_>,
        origin: &dyn Fn(Range<usize>) -> Origin,
    ) {
        let whose = tenant.map_or("default".to_owned(), |tenant| format!("tenants.{tenant}"));
        for (name, value) in in_order(quota) {
            let (at, field) = (origin(name.span()), name.get_ref());
            let Some((field, key)) = known(field) else {
                self.problem(at, unknown_field(&whose, field));
                continue;
            };
            let Some(text) = as_text(key, value).filter(|text| key.kind.takes(text)) else {
                self.problem(at, format!("{TABLE}.{whose}.{field} cannot be that; {}", key.allowed()));
                continue;
            };
            match tenant {
                None => self.put(key, Set { text, origin: at }),
                Some(tenant) => {
                    self.tenant_quotas.insert((tenant.to_owned(), field), Set { text, origin: at });
                }
            }
        }
    }

    /// What is set for single tenants, under its full name as a file has it.
    pub fn tenant_quotas(&self) -> impl Iterator<Item = (String, &Set)> {
        let name = |tenant: &str, field: &str| {
            let tenant = if tenant.contains('.') { format!("\"{tenant}\"") } else { tenant.to_owned() };
            format!("{TABLE}.tenants.{tenant}.{field}")
        };
        self.tenant_quotas.iter().map(move |((tenant, field), set)| (name(tenant, field), set))
    }

    /// A bound of 0 would keep a tenant out for good, which is no quota.
    pub(super) fn zero_quotas(&self) -> Vec<Problem> {
        let default = FIELDS.iter().map(|field| format!("{TABLE}.default.{field}"));
        let default = default.map(|name| (self.get(&name), name));
        let tenants = self.tenant_quotas().map(|(name, set)| (set.clone(), name));
        let zero = default.chain(tenants).filter(|(set, _)| set.text.parse() == Ok(0));
        zero.map(|(set, name)| Problem {
            origin: set.origin,
            message: format!("{name} is 0, which lets nothing in; allowed is 1 or more, or -1 for no bound"),
        })
        .collect()
    }

    /// The quotas that all layers amount to. What a tenant's table leaves out is as by default.
    pub(super) fn quotas(&self) -> Quotas {
        let default = |field: &str| self.get(&format!("{TABLE}.default.{field}")).text;
        let quota = |text: &dyn Fn(&str) -> String| Quota {
            concurrency: text("concurrency").parse().ok(),
            queued: text("queued").parse().ok(),
            tokens_per_minute: text("tokens_per_minute").parse().ok(),
            weight: text("weight").parse().unwrap_or(1),
        };
        let names: Vec<&str> = self.tenant_quotas.keys().map(|(tenant, _)| tenant.as_str()).collect();
        let tenants = names.into_iter().filter_map(|name| {
            let own = |field: &str| {
                let set = FIELDS.iter().find(|known| **known == field);
                let set = set.and_then(|field| self.tenant_quotas.get(&(name.to_owned(), *field)));
                set.map_or_else(|| default(field), |set| set.text.clone())
            };
            Some((name.parse().ok()?, quota(&own)))
        });
        Quotas { tenants: tenants.collect(), default: quota(&default) }
    }
}

/// People read from the top; tables come sorted by name.
fn in_order<'a, 'b>(
    table: &'a DeTable<'b>,
) -> Vec<(&'a Spanned<std::borrow::Cow<'b, str>>, &'a Spanned<DeValue<'b>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    entries
}

fn known(field: &str) -> Option<(&'static str, &'static Key)> {
    let field = FIELDS.into_iter().find(|known| *known == field)?;
    Some((field, find(&format!("{TABLE}.default.{field}"))?))
}

fn what_stands_in_it() -> String {
    format!("allowed are the tables [{TABLE}.default] and [{TABLE}.tenants.NAME]")
}

fn unknown_field(whose: &str, field: &str) -> String {
    let near = nearest(&format!("{TABLE}.default.{field}"));
    let near = near.and_then(|near| near.strip_prefix("quotas.default."));
    match near {
        Some(near) => format!("unknown key `{TABLE}.{whose}.{field}`; did you mean `{near}`?"),
        None => format!("unknown key `{TABLE}.{whose}.{field}`; known are {}", FIELDS.join(", ")),
    }
}
