//! Whether a worker fits into a pool's memory, and who would have to go: numbers in, an outlook out.

use api_types::WorkerId;

use crate::time::Time;

/// What a worker needs, against what its device has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Need {
    /// Bytes it needs, with what is to stay free.
    pub bytes: u64,
    /// Bytes free, less what workers that are being started still take.
    pub free: u64,
    /// Bytes of the device; 0 when unknown.
    pub total: u64,
}

/// A worker that may be asked to give way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resident {
    pub worker_id: WorkerId,
    /// Bytes that its end would free.
    pub bytes: u64,
    /// From when it may take no new job: at once when it is idle.
    pub from: Time,
}

/// What the numbers allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outlook {
    /// It fits.
    Fits,
    /// It fits once these are gone, who may be told so from then on.
    Release { from: Time, victims: Vec<WorkerId> },
    /// Memory is about to change hands; what fits shows afterwards.
    Going,
    /// It would fit, if what cannot be taken away were not there.
    Held,
    /// The device is too small.
    TooLarge,
}

/// Looks at one device. `residents` come in the order in which they are to go; `going` says that
/// workers there are being started or ended.
pub(super) fn look(need: Need, going: bool, residents: &[Resident]) -> Outlook {
    if need.total > 0 && need.bytes > need.total {
        return Outlook::TooLarge;
    }
    if need.bytes <= need.free {
        return Outlook::Fits;
    }
    if going {
        return Outlook::Going;
    }
    let mut free = need.free;
    let mut victims: Vec<&Resident> = Vec::new();
    for resident in residents {
        free = free.saturating_add(resident.bytes);
        victims.push(resident);
        if free >= need.bytes {
            return released(victims, free - need.bytes);
        }
    }
    Outlook::Held
}

/// Lets off, the last to go first, whom the others make unnecessary.
fn released(victims: Vec<&Resident>, mut spare: u64) -> Outlook {
    let mut kept: Vec<&Resident> = Vec::with_capacity(victims.len());
    for victim in victims.into_iter().rev() {
        if victim.bytes <= spare {
            spare -= victim.bytes;
        } else {
            kept.push(victim);
        }
    }
    kept.reverse();
    Outlook::Release {
        from: kept.iter().map(|victim| victim.from).max().unwrap_or_default(),
        victims: kept.into_iter().map(|victim| victim.worker_id.clone()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn resident(name: &str, bytes: u64, from: u64) -> Resident {
        Resident { worker_id: name.parse().expect("an id"), bytes, from: Time(from) }
    }

    fn need(bytes: u64, free: u64) -> Need {
        Need { bytes, free, total: 100 }
    }

    #[test]
    fn outlooks_are_as_the_numbers_say() {
        let residents = [resident("a", 10, 0), resident("b", 30, 0), resident("c", 20, 7)];
        let release = |from, names: &[&str]| Outlook::Release {
            from: Time(from),
            victims: names.iter().map(|name| name.parse().expect("an id")).collect(),
        };
        assert_eq!(look(need(40, 40), true, &residents), Outlook::Fits);
        assert_eq!(look(need(40, 39), true, &residents), Outlook::Going);
        assert_eq!(look(need(41, 40), false, &residents), release(0, &["a"]));
        assert_eq!(look(need(60, 40), false, &residents), release(0, &["b"]), "`a` alone is not enough");
        assert_eq!(look(need(80, 40), false, &residents), release(0, &["a", "b"]));
        assert_eq!(look(need(81, 40), false, &residents), release(7, &["b", "c"]));
        assert_eq!(look(need(100, 39), false, &residents), Outlook::Held);
        assert_eq!(look(need(101, 0), false, &residents), Outlook::TooLarge);
    }

    proptest! {
        #[test]
        fn victims_free_enough_and_none_of_them_goes_in_vain(
            sizes in proptest::collection::vec(0u64..50, 0..8), wanted in 1u64..100, free in 0u64..100,
        ) {
            let residents: Vec<Resident> = sizes.iter().enumerate()
                .map(|(n, bytes)| resident(&format!("w{n}"), *bytes, n as u64)).collect();
            let bytes_of = |id: &WorkerId| residents.iter().find(|r| r.worker_id == *id).map_or(0, |r| r.bytes);
            match look(need(wanted, free), false, &residents) {
                Outlook::Release { victims, .. } => {
                    let freed: u64 = victims.iter().map(bytes_of).sum();
                    prop_assert!(free + freed >= wanted);
                    for victim in &victims {
                        prop_assert!(free + freed - bytes_of(victim) < wanted);
                    }
                }
                Outlook::Fits => prop_assert!(wanted <= free),
                Outlook::Held => prop_assert!(free + sizes.iter().sum::<u64>() < wanted),
                Outlook::Going | Outlook::TooLarge => prop_assert!(false),
            }
        }
    }
}
