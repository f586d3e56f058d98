//! The jobs of one flow: by order key, then by arrival, with deadlines exchanging places.

use std::collections::BTreeMap;

use api_types::JobId;
use serde::{Deserialize, Serialize};

use super::ranks::Ranks;
use crate::time::Time;

/// A place in line: the smallest is served first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Place {
    /// The policy's key.
    order: i64,
    /// The job's number, which grows with its arrival.
    number: u64,
    /// Tells it from the place of the same job after an earlier visit.
    sequence: u64,
}

/// What a job came into line with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ticket {
    /// The job.
    pub job_id: JobId,
    /// Its place by arrival.
    pub place: Place,
    /// When it has to start to end by its deadline.
    pub latest_start: Option<Time>,
}

impl Ticket {
    /// A ticket for a place by order key and arrival.
    pub const fn new(
        job_id: JobId,
        order: i64,
        number: u64,
        sequence: u64,
        latest_start: Option<Time>,
    ) -> Self {
        Self { job_id, place: Place { order, number, sequence }, latest_start }
    }

    fn urgency(&self) -> Option<Urgency> {
        let latest_start = self.latest_start?;
        let Place { order, number, .. } = self.place;
        Some(Urgency { order, latest_start, number, job_id: self.job_id })
    }
}

/// The order among jobs with deadlines: least slack first, which with one time for all is the
/// earliest latest start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Urgency {
    order: i64,
    latest_start: Time,
    number: u64,
    job_id: JobId,
}

/// Whose a place is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Holder {
    /// This job is served in it.
    Job(JobId),
    /// The most urgent of the jobs with deadlines is served in it; it counts as this one's.
    Urgent(Urgency),
}

/// A line in which a job without a deadline is never overtaken for somebody's deadline: jobs with
/// deadlines are served in the places that they hold together, the most urgent in the first.
/// Every operation is `O(log n)`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Line {
    places: BTreeMap<Place, Holder>,
    urgent: BTreeMap<Urgency, Place>,
    /// The keys of `urgent`, and its values.
    by_urgency: Ranks<Urgency>,
    urgent_places: Ranks<Place>,
}

impl Line {
    /// Adds a job.
    pub fn push(&mut self, ticket: &Ticket) {
        let urgency = ticket.urgency();
        let holder = urgency.map_or(Holder::Job(ticket.job_id), Holder::Urgent);
        self.places.insert(ticket.place, holder);
        if let Some(urgency) = urgency {
            self.urgent.insert(urgency, ticket.place);
            self.by_urgency.insert(urgency);
            self.urgent_places.insert(ticket.place);
        }
    }

    /// The job that is served next, and the place in which it is.
    pub fn head(&self) -> Option<(Place, JobId)> {
        let (place, holder) = self.places.first_key_value()?;
        match holder {
            Holder::Job(job_id) => Some((*place, *job_id)),
            Holder::Urgent(_) => self.urgent.first_key_value().map(|(urgent, _)| (*place, urgent.job_id)),
        }
    }

    /// The jobs in the order in which they are served, each with the place in which it is.
    pub fn in_turn(&self) -> impl Iterator<Item = (Place, JobId)> {
        let mut urgent = self.urgent.keys();
        self.places.iter().filter_map(move |(place, holder)| match holder {
            Holder::Job(job_id) => Some((*place, *job_id)),
            Holder::Urgent(_) => urgent.next().map(|urgency| (*place, urgency.job_id)),
        })
    }

    /// Takes a job out to serve it. The head leaves by the first place, whose owner gets the
    /// head's own place in exchange; any other job leaves by its own. Gives the place it left by, if it
    /// was there.
    pub fn serve(&mut self, ticket: &Ticket) -> Option<Place> {
        if self.head().is_some_and(|(_, head)| head == ticket.job_id) {
            self.exchange_first(ticket);
        }
        self.remove(ticket)
    }

    fn exchange_first(&mut self, ticket: &Ticket) {
        let Some(urgency) = ticket.urgency() else { return };
        let Some((first, Holder::Urgent(owner))) = self.places.first_key_value() else { return };
        let (first, owner) = (*first, *owner);
        let Some(own) = self.urgent.insert(urgency, first) else { return };
        self.places.insert(first, Holder::Urgent(urgency));
        if own != first {
            self.urgent.insert(owner, own);
            self.places.insert(own, Holder::Urgent(owner));
        }
    }

    /// Takes a job out that leaves unserved, with its own place. Gives that place, if it was there.
    pub fn remove(&mut self, ticket: &Ticket) -> Option<Place> {
        let place = match ticket.urgency() {
            Some(urgency) => {
                let place = self.urgent.remove(&urgency)?;
                self.by_urgency.remove(&urgency);
                self.urgent_places.remove(&place);
                place
            }
            None => ticket.place,
        };
        self.places.remove(&place).map(|_| place)
    }

    /// Whether nobody is in it.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The place in which a job will be served.
    pub fn served_in(&self, ticket: &Ticket) -> Place {
        let of_urgent = |urgency| self.urgent_places.nth(self.by_urgency.rank(&urgency));
        ticket.urgency().and_then(of_urgent).unwrap_or(ticket.place)
    }
}

#[cfg(test)]
#[allow(clippy::expect_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn ticket(number: u64, latest_start: Option<u64>) -> Ticket {
        let job_id = JobId::from_uuid(Uuid::from_u128(u128::from(number)));
        Ticket::new(job_id, 0, number, number, latest_start.map(Time))
    }

    fn before(line: &Line, ticket: &Ticket) -> u64 {
        line.places.range(..line.served_in(ticket)).count() as u64
    }

    fn drain(line: &mut Line, tickets: &[Ticket]) -> Vec<u64> {
        let mut served = Vec::new();
        while let Some((_, job_id)) = line.head() {
            let ticket = tickets.iter().find(|ticket| ticket.job_id == job_id).expect("known");
            assert_eq!(before(line, ticket), 0);
            assert_eq!(line.in_turn().next(), line.head());
            assert!(line.serve(ticket).is_some());
            served.push(ticket.place.number);
        }
        served
    }

    #[test]
    fn deadlines_exchange_places_among_themselves_only() {
        let tickets = [
            ticket(1, Some(900)),
            ticket(2, None),
            ticket(3, Some(100)),
            ticket(4, None),
            ticket(5, Some(500)),
        ];
        let mut line = Line::default();
        tickets.iter().for_each(|ticket| line.push(ticket));
        let before: Vec<u64> = tickets.iter().map(|ticket| before(&line, ticket)).collect();
        assert_eq!(before, [4, 1, 0, 3, 2]);
        assert_eq!(drain(&mut line, &tickets), [3, 2, 5, 4, 1]);
        assert!(line.is_empty() && line.urgent.is_empty());
        assert!(line.by_urgency.is_empty() && line.urgent_places.is_empty());
    }

    #[test]
    fn a_smaller_order_key_goes_before_any_deadline() {
        let mut line = Line::default();
        let pressed = ticket(1, Some(1));
        let favoured = Ticket::new(JobId::from_uuid(Uuid::from_u128(2)), -1, 2, 2, None);
        line.push(&pressed);
        line.push(&favoured);
        assert_eq!(drain(&mut line, &[pressed, favoured]), [2, 1]);
    }

    #[test]
    fn a_job_that_returns_after_an_exchange_has_a_place_of_its_own() {
        let (early, late) = (ticket(1, Some(900)), ticket(2, Some(100)));
        let mut line = Line::default();
        line.push(&early);
        line.push(&late);
        assert!(line.serve(&late).is_some());
        let back = Ticket::new(late.job_id, 0, 2, 7, late.latest_start);
        line.push(&back);
        assert_eq!(drain(&mut line, &[early, back]), [2, 1]);
        assert!(line.is_empty() && line.urgent.is_empty());
        assert!(line.by_urgency.is_empty() && line.urgent_places.is_empty());
    }

    proptest! {
        /// Whatever deadlines the others have and whoever leaves, the jobs without one are served
        /// exactly when they would be in a plain line, and all deadlines by latest start.
        #[test]
        fn the_place_of_a_job_without_a_deadline_is_never_taken(
            jobs in prop::collection::vec((prop::option::of(0_u64..50), any::<bool>()), 1..40),
        ) {
            let tickets: Vec<Ticket> =
                (1..).zip(&jobs).map(|(number, (deadline, _))| ticket(number, *deadline)).collect();
            let mut line = Line::default();
            tickets.iter().for_each(|ticket| line.push(ticket));
            let mut stay = Vec::new();
            for (ticket, (_, leaves)) in tickets.iter().zip(&jobs) {
                if *leaves {
                    prop_assert!(line.remove(ticket).is_some());
                    prop_assert!(line.remove(ticket).is_none());
                } else {
                    stay.push(*ticket);
                }
            }
            let served = drain(&mut line, &tickets);
            prop_assert_eq!(served.len(), stay.len());
            let mut urgent: Vec<_> = stay.iter().filter_map(Ticket::urgency).collect();
            urgent.sort_unstable();
            let mut urgent = urgent.into_iter();
            for (number, plain) in served.into_iter().zip(&stay) {
                let expected = match plain.latest_start {
                    None => plain.place.number,
                    Some(_) => urgent.next().expect("as many").number,
                };
                prop_assert_eq!(number, expected);
            }
        }
    }
}
