//! A sorted set that knows how many of its keys are smaller than one, and which is the n-th.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A treap (Seidel and Aragon 1996): a search tree by key that is a heap by numbers which look random,
/// so that it is balanced whatever comes. Every operation is `O(log n)` as expected over these numbers.
/// Answers follow from the keys alone, not from the shape.
#[derive(Debug)]
pub(super) struct Ranks<K> {
    root: Link<K>,
    /// Numbers drawn so far.
    drawn: u64,
}

type Link<K> = Option<Box<Node<K>>>;

#[derive(Debug)]
struct Node<K> {
    key: K,
    /// The largest of a tree is its root's.
    weight: u64,
    /// Keys in this tree.
    size: u64,
    left: Link<K>,
    right: Link<K>,
}

impl<K> Default for Ranks<K> {
    fn default() -> Self {
        Self { root: None, drawn: 0 }
    }
}

impl<K: Ord + Copy> Ranks<K> {
    /// Adds a key that is not there.
    pub fn insert(&mut self, key: K) {
        self.drawn += 1;
        let node = Box::new(Node { key, weight: mix(self.drawn), size: 1, left: None, right: None });
        let (below, above) = split(self.root.take(), &key);
        self.root = merge(merge(below, Some(node)), above);
    }

    /// Takes a key out.
    pub fn remove(&mut self, key: &K) {
        remove(&mut self.root, key);
    }

    /// Keys that are smaller than this one.
    pub fn rank(&self, key: &K) -> u64 {
        let (mut at, mut smaller) = (&self.root, 0);
        while let Some(node) = at {
            if node.key < *key {
                smaller += size(&node.left) + 1;
                at = &node.right;
            } else {
                at = &node.left;
            }
        }
        smaller
    }

    /// The key that so many are smaller than.
    pub fn nth(&self, mut smaller: u64) -> Option<K> {
        let mut at = &self.root;
        while let Some(node) = at {
            let before = size(&node.left);
            if smaller == before {
                return Some(node.key);
            }
            if smaller < before {
                at = &node.left;
            } else {
                smaller -= before + 1;
                at = &node.right;
            }
        }
        None
    }

    /// Whether there is no key.
    pub const fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    fn keys(&self) -> impl Iterator<Item = K> {
        (0..size(&self.root)).map_while(|at| self.nth(at))
    }
}

fn size<K>(link: &Link<K>) -> u64 {
    link.as_ref().map_or(0, |node| node.size)
}

fn resize<K>(node: &mut Node<K>) {
    node.size = size(&node.left) + size(&node.right) + 1;
}

/// The keys below one, and the rest.
fn split<K: Ord>(link: Link<K>, key: &K) -> (Link<K>, Link<K>) {
    let Some(mut node) = link else { return (None, None) };
    if node.key < *key {
        let (below, above) = split(node.right.take(), key);
        node.right = below;
        resize(&mut node);
        (Some(node), above)
    } else {
        let (below, above) = split(node.left.take(), key);
        node.left = above;
        resize(&mut node);
        (below, Some(node))
    }
}

/// One tree of two, of which the first has the smaller keys.
fn merge<K>(below: Link<K>, above: Link<K>) -> Link<K> {
    match (below, above) {
        (None, link) | (link, None) => link,
        (Some(mut below), Some(mut above)) => {
            if below.weight > above.weight {
                below.right = merge(below.right.take(), Some(above));
                resize(&mut below);
                Some(below)
            } else {
                above.left = merge(Some(below), above.left.take());
                resize(&mut above);
                Some(above)
            }
        }
    }
}

/// Returns whether the key was there.
fn remove<K: Ord>(link: &mut Link<K>, key: &K) -> bool {
    let Some(node) = link else { return false };
    let removed = match key.cmp(&node.key) {
        std::cmp::Ordering::Less => remove(&mut node.left, key),
        std::cmp::Ordering::Greater => remove(&mut node.right, key),
        std::cmp::Ordering::Equal => {
            *link = merge(node.left.take(), node.right.take());
            return true;
        }
    };
    resize(node);
    removed
}

/// A number that looks random and follows from its input (the finalizer of SplitMix64).
const fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// As a list in order.
impl<K: Ord + Copy + Serialize> Serialize for Ranks<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.keys().collect::<Vec<_>>())
    }
}

impl<'de, K: Ord + Copy + Deserialize<'de>> Deserialize<'de> for Ranks<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut ranks = Self::default();
        Vec::<K>::deserialize(deserializer)?.into_iter().for_each(|key| ranks.insert(key));
        Ok(ranks)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn depth<K>(link: &Link<K>) -> usize {
        link.as_ref().map_or(0, |node| 1 + depth(&node.left).max(depth(&node.right)))
    }

    #[test]
    fn keys_that_come_in_order_make_no_deep_tree() {
        let mut ranks = Ranks::default();
        (0..100_000_u64).for_each(|key| ranks.insert(key));
        (0..50_000_u64).for_each(|key| ranks.remove(&key));
        assert!(depth(&ranks.root) < 60, "{}", depth(&ranks.root));
        assert_eq!((ranks.rank(&75_000), ranks.nth(25_000)), (25_000, Some(75_000)));
    }

    proptest! {
        /// It answers as a plain set does, also after it was written down and read again.
        #[test]
        fn ranks_are_those_of_a_sorted_list(doings in prop::collection::vec((any::<bool>(), 0_u8..40), 0..120)) {
            let (mut ranks, mut plain) = (Ranks::default(), BTreeSet::new());
            for (add, key) in doings {
                if !add {
                    ranks.remove(&key);
                    plain.remove(&key);
                } else if plain.insert(key) {
                    ranks.insert(key);
                }
            }
            let text = serde_json::to_string(&ranks).expect("a text");
            let again: Ranks<u8> = serde_json::from_str(&text).expect("ranks");
            for ranks in [&ranks, &again] {
                prop_assert_eq!(ranks.is_empty(), plain.is_empty());
                prop_assert_eq!(ranks.keys().collect::<Vec<_>>(), plain.iter().copied().collect::<Vec<_>>());
                for key in 0..41 {
                    prop_assert_eq!(ranks.rank(&key), plain.range(..key).count() as u64);
                }
                prop_assert_eq!(ranks.nth(plain.len() as u64), None);
            }
        }
    }
}
