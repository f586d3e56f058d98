//! Which files of a repository make the model: the same choice every time, told in words.

use api_types::{ErrorCode, ErrorDetail};

/// A file of a repository, as its listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// Path inside the repository.
    pub path: String,
    /// Bytes, where the listing says so.
    pub size: Option<u64>,
    /// sha256, where the listing says so.
    pub sha256: Option<String>,
}

/// The files to fetch, and why these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// In the order they are fetched; the first one is what the engine opens.
    pub files: Vec<RemoteFile>,
    /// `gguf` or `safetensors`.
    pub format: &'static str,
    /// For people.
    pub why: String,
}

/// Quantisations from the most to the least preferred: small and good first.
const PREFERRED: &[&str] = &[
    "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "Q5_K_M", "Q5_K_S", "Q6_K", "Q8_0", "IQ4_XS", "IQ4_NL", "Q3_K_M",
    "Q3_K_S", "Q2_K", "BF16", "F16", "F32",
];

/// Chooses the files of a repository.
///
/// # Errors
/// `MODEL_NOT_FOUND` when the wanted file is not there, `UNSUPPORTED_MODEL` when nothing in the
/// repository is a model that can be run.
pub fn choose(listing: &[RemoteFile], wanted: Option<&str>) -> Result<Choice, ErrorDetail> {
    if let Some(path) = wanted {
        return named(listing, path);
    }
    if let Some(choice) = best_gguf(listing) {
        return Ok(choice);
    }
    safetensors(listing).ok_or_else(|| {
        ErrorDetail::new(
            ErrorCode::UnsupportedModel,
            "the repository holds neither a .gguf file nor .safetensors files with a config.json",
        )
        .with_hint("look for a repository of the same model whose name ends with -GGUF")
    })
}

fn named(listing: &[RemoteFile], path: &str) -> Result<Choice, ErrorDetail> {
    let file = listing.iter().find(|file| file.path == path).ok_or_else(|| {
        let known = listing.iter().map(|file| file.path.as_str());
        let meant = crate::nearest(path, known).map(|near| format!("; did you mean `{near}`?"));
        let message = format!("the repository has no file `{path}`{}", meant.unwrap_or_default());
        ErrorDetail::new(ErrorCode::ModelNotFound, message).with_field("file")
    })?;
    let format = if is_gguf(&file.path) { "gguf" } else { "safetensors" };
    let files = with_shards(listing, file);
    Ok(Choice { files, format, why: format!("{path}: the file that was asked for") })
}

fn best_gguf(listing: &[RemoteFile]) -> Option<Choice> {
    let candidates: Vec<&RemoteFile> = listing.iter().filter(|file| is_model_gguf(&file.path)).collect();
    let best = candidates.iter().min_by_key(|file| (rank(&file.path), file.path.as_str()))?;
    let files = with_shards(listing, best);
    let why = match (candidates.len(), quantization(&best.path)) {
        (1, _) => format!("{}: the only .gguf file", best.path),
        (count, Some(quant)) => {
            format!("{}: {quant} comes first of the preferred quantisations among {count} files", best.path)
        }
        (count, None) => format!("{}: first by name among {count} files of unknown quantisation", best.path),
    };
    Some(Choice { files, format: "gguf", why })
}

fn safetensors(listing: &[RemoteFile]) -> Option<Choice> {
    let wanted = |path: &str| {
        !path.contains('/')
            && (path.ends_with(".safetensors") || path.ends_with(".json") || path == "tokenizer.model")
    };
    let mut files: Vec<RemoteFile> = listing.iter().filter(|file| wanted(&file.path)).cloned().collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let whole = files.iter().any(|f| f.path.ends_with(".safetensors"))
        && files.iter().any(|f| f.path == "config.json");
    let why = format!("{} files: no .gguf, so the safetensors files with their .json files", files.len());
    whole.then_some(Choice { files, format: "safetensors", why })
}

/// A file with the other pieces of its set, where it is `NAME-00001-of-00003.gguf`.
fn with_shards(listing: &[RemoteFile], first: &RemoteFile) -> Vec<RemoteFile> {
    let Some((stem, count)) = shard_set(&first.path) else { return vec![first.clone()] };
    let mut files: Vec<RemoteFile> =
        listing.iter().filter(|file| shard_set(&file.path) == Some((stem, count))).cloned().collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

/// `NAME` and `00003` of `NAME-00001-of-00003.gguf`.
fn shard_set(path: &str) -> Option<(&str, &str)> {
    let (front, count) = path.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = front.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    (digits(count) && digits(number)).then_some((stem, count))
}

fn is_gguf(path: &str) -> bool {
    path.to_ascii_lowercase().ends_with(".gguf")
}

/// A .gguf that holds a model's weights: no projector, no statistics, no later shard.
fn is_model_gguf(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    let helper = ["mmproj", "imatrix", "vocab"].iter().any(|word| lower.contains(word));
    is_gguf(path) && !helper && (shard_set(path).is_none() || path.contains("-00001-of-"))
}

fn rank(path: &str) -> usize {
    let quant = quantization(path);
    PREFERRED.iter().position(|known| quant == Some(*known)).unwrap_or(PREFERRED.len())
}

/// The quantisation in a file's name; the longest that fits, so that `Q4_K_M` is not `Q4_K`.
pub fn quantization(path: &str) -> Option<&'static str> {
    let upper = path.to_ascii_uppercase();
    let words: Vec<&str> = upper.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    PREFERRED
        .iter()
        .find(|quant| words.iter().any(|word| word == *quant || word.ends_with(&format!("_{quant}"))))
        .copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn listing(paths: &[&str]) -> Vec<RemoteFile> {
        paths.iter().map(|path| RemoteFile { path: (*path).into(), size: Some(1), sha256: None }).collect()
    }

    fn chosen(paths: &[&str], wanted: Option<&str>) -> Vec<String> {
        choose(&listing(paths), wanted).expect("a choice").files.into_iter().map(|file| file.path).collect()
    }

    #[test]
    fn choices_are_as_promised() {
        for (paths, wanted, expected) in [
            (&["m.Q8_0.gguf", "m.Q4_K_M.gguf", "m.Q2_K.gguf"][..], None, &["m.Q4_K_M.gguf"][..]),
            (&["m-f16.gguf", "m-q4_1.gguf"], None, &["m-q4_1.gguf"]),
            (&["mmproj-m-Q4_K_M.gguf", "m.Q8_0.gguf"], None, &["m.Q8_0.gguf"]),
            (&["b.gguf", "a.gguf"], None, &["a.gguf"]),
            (&["m.Q8_0.gguf", "m.Q4_0.gguf"], Some("m.Q8_0.gguf"), &["m.Q8_0.gguf"]),
            (
                &["q-00002-of-00002.gguf", "q-00001-of-00002.gguf", "README.md"],
                None,
                &["q-00001-of-00002.gguf", "q-00002-of-00002.gguf"],
            ),
            (
                &["model.safetensors", "config.json", "x/other.json", "tokenizer.json"],
                None,
                &["config.json", "model.safetensors", "tokenizer.json"],
            ),
        ] {
            assert_eq!(chosen(paths, wanted), expected, "{paths:?}");
        }
    }

    #[test]
    fn what_cannot_be_chosen_says_why() {
        let error = choose(&listing(&["README.md"]), None).expect_err("no model");
        assert_eq!(error.code, ErrorCode::UnsupportedModel);
        let error = choose(&listing(&["m.Q4_1.gguf"]), Some("m.Q4_0.gguf")).expect_err("no file");
        assert!(error.message.contains("did you mean `m.Q4_1.gguf`"), "{}", error.message);
    }

    proptest! {
        #[test]
        fn the_order_of_the_listing_does_not_matter(mut paths in proptest::collection::btree_set("[a-c](-0000[12]-of-00002|[.-](q4_0|Q8_0|f16))?\\.gguf", 1..8)
            .prop_map(|set| set.into_iter().collect::<Vec<_>>()).prop_shuffle()) {
            let first = choose(&listing(&paths.iter().map(String::as_str).collect::<Vec<_>>()), None).ok();
            paths.sort();
            let second = choose(&listing(&paths.iter().map(String::as_str).collect::<Vec<_>>()), None).ok();
            prop_assert_eq!(first, second);
        }
    }
}
