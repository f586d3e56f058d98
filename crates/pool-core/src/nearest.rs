//! The known name that somebody most likely meant.

/// The name of `known` that differs from `wanted` in the fewest characters, when it is near
/// enough to be a slip: a third of its length at most. Ties fall to the first in order.
pub fn nearest<'a>(wanted: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Longer texts are no slips of a name, and the distance costs their product.
    if wanted.len() > 128 {
        return None;
    }
    let limit = (wanted.chars().count() / 3).max(2);
    known
        .into_iter()
        .map(|name| (distance(wanted, name), name))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, name)| name)
}

/// Insertions, deletions and replacements between two texts.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().take(128).collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut next = vec![i + 1];
        for (j, (r, pair)) in right.iter().zip(row.windows(2)).enumerate() {
            let (&[diagonal, above], &before) = (pair, next.get(j).unwrap_or(&usize::MAX)) else { continue };
            next.push((diagonal + usize::from(l != *r)).min(above + 1).min(before.saturating_add(1)));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_name_and_a_stranger_finds_none() {
        let known = ["tinyllama", "qwen-0.5b", "smollm2-135m"];
        assert_eq!(nearest("tinylama", known), Some("tinyllama"));
        assert_eq!(nearest("smolm2-135", known), Some("smollm2-135m"));
        assert_eq!(nearest("gpt-5", known), None);
        assert_eq!(nearest("", known), None);
    }

    #[test]
    fn distances_are_those_of_the_textbook() {
        for (left, right, steps) in [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("a", "a", 0)]
        {
            assert_eq!(distance(left, right), steps, "{left} {right}");
        }
    }
}
