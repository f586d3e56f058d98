//! The figures in `bench/README.md`, each bench's between two marks of its own.

use std::path::Path;

use anyhow::Context;

/// Puts the figures of the bench `name` between its marks of the README.
///
/// # Errors
/// When the README cannot be written or has no marks.
pub fn update_section(name: &str, figures: &str) -> anyhow::Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let renewed = renew(&text, name, figures).with_context(|| {
        format!("{} has no `{}` ... `{}`", path.display(), mark(name, "begin"), mark(name, "end"))
    })?;
    Ok(std::fs::write(path, renewed)?)
}

fn mark(name: &str, end: &str) -> String {
    format!("<!-- {name} figures: {end} -->")
}

fn renew(text: &str, name: &str, figures: &str) -> Option<String> {
    let (begin, end) = (mark(name, "begin"), mark(name, "end"));
    let (before, rest) = text.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}\n\n{}\n\n{end}{after}", figures.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_between_the_marks_of_its_name_changes() {
        let (begin, end) = (mark("relay", "begin"), mark("relay", "end"));
        let text = format!("head\n{begin}\nold\n{end}\ntail\n");
        let renewed = renew(&text, "relay", "new\n").expect("marks");
        assert_eq!(renewed, format!("head\n{begin}\n\nnew\n\n{end}\ntail\n"));
        assert_eq!(renew(&text, "worker", "new"), None);
    }
}
