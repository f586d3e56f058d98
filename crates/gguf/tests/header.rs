//! The header reader against sound, damaged and random files.

use std::io::Cursor;

use gguf::{Header, Partial, Problem, Reason, Value, read, read_prefix};
use proptest::prelude::*;

/// Builds files, sound or not.
#[derive(Default)]
struct Builder {
    keys: Vec<u8>,
    key_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    data: usize,
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Builder {
    fn sound() -> Self {
        Self { data: 64, ..Self::default() }
            .string("general.architecture", "llama")
            .string("general.name", "Bee")
            .uint("general.file_type", 3)
            .uint("llama.context_length", 2048)
            .uint("llama.block_count", 2)
            .uint("llama.embedding_length", 64)
            .uint("llama.attention.head_count", 4)
            .uint("llama.attention.head_count_kv", 2)
            .strings("tokenizer.ggml.tokens", &["a", "b"])
            .tensor("token_embd.weight", &[32, 1], 3, 0)
            .tensor("output_norm.weight", &[8], 0, 32)
    }

    fn key(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        text(&mut self.keys, key);
        self.keys.extend(kind.to_le_bytes());
        self.keys.extend(value);
        self.key_count += 1;
        self
    }

    fn string(self, key: &str, value: &str) -> Self {
        let mut bytes = Vec::new();
        text(&mut bytes, value);
        self.key(key, 8, &bytes)
    }

    fn strings(self, key: &str, values: &[&str]) -> Self {
        let mut bytes = 8u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| text(&mut bytes, value));
        self.key(key, 9, &bytes)
    }

    fn uint(self, key: &str, value: u32) -> Self {
        self.key(key, 4, &value.to_le_bytes())
    }

    fn tensor(mut self, name: &str, dimensions: &[u64], kind: u32, offset: u64) -> Self {
        text(&mut self.tensors, name);
        self.tensors.extend((dimensions.len() as u32).to_le_bytes());
        dimensions.iter().for_each(|size| self.tensors.extend(size.to_le_bytes()));
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self.tensor_count += 1;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend(self.tensor_count.to_le_bytes());
        out.extend(self.key_count.to_le_bytes());
        out.extend(&self.keys);
        out.extend(&self.tensors);
        let begin = out.len().next_multiple_of(32);
        out.resize(begin + self.data, 0);
        out
    }
}

fn read_bytes(bytes: &[u8]) -> Result<Header, Problem> {
    read(Cursor::new(bytes), bytes.len() as u64)
}

fn reason(builder: &Builder) -> Reason {
    read_bytes(&builder.bytes()).expect_err("damaged").reason
}

#[test]
fn a_sound_header_tells_what_programs_ask() {
    let header = read_bytes(&Builder::sound().bytes()).expect("sound");
    assert_eq!((header.version, header.architecture(), header.name()), (3, "llama", Some("Bee")));
    assert_eq!((header.context_length(), header.quantization().as_deref()), (Some(2048), Some("Q4_1")));
    assert_eq!(header.metadata.get("tokenizer.ggml.tokens"), Some(&Value::Skipped(2)));
    assert_eq!(header.tensor_bytes(), 20 + 32);
    // 2 layers x 2 heads x (16 + 16) elements x 2 bytes
    assert_eq!(header.kv_bytes_per_token(2), Some(256));
    assert!(!header.has_chat_template());
}

#[test]
fn each_kind_of_damage_is_named() {
    assert_eq!(reason(&Builder::sound().uint("general.name", 1)), Reason::DuplicateName);
    assert_eq!(reason(&Builder::sound().key("x", 99, &[])), Reason::UnknownValueType);
    assert_eq!(reason(&Builder::sound().uint("general.alignment", 33)), Reason::BadAlignment);
    assert_eq!(reason(&Builder::sound().tensor("t", &[32], 0, 33)), Reason::Misaligned);
    assert_eq!(reason(&Builder::sound().tensor("t", &[32], 0, 64)), Reason::PastEnd);
    assert_eq!(reason(&Builder::sound().tensor("t", &[1], 0, 0)), Reason::Overlap);
    assert_eq!(reason(&Builder::sound().tensor("t", &[31], 3, 0)), Reason::BadShape);
    assert_eq!(reason(&Builder::sound().tensor("t", &[], 0, 0)), Reason::BadShape);
    assert_eq!(reason(&Builder::sound().tensor("t", &[u64::MAX, 8], 0, 0)), Reason::BadShape);
    assert_eq!(reason(&Builder::sound().tensor("t", &[32], 31, 0)), Reason::UnknownTensorType);
    assert_eq!(reason(&Builder::sound().tensor("", &[32], 0, 0)), Reason::BadName);
    assert_eq!(reason(&Builder::default()), Reason::MissingKey);
}

#[test]
fn offsets_point_at_the_damage() {
    let mut bytes = Builder::sound().bytes();
    bytes[4] = 9;
    assert_eq!(read_bytes(&bytes), Err(Problem { offset: 4, reason: Reason::UnknownVersion }));
    bytes[0] = b'X';
    assert_eq!(read_bytes(&bytes), Err(Problem { offset: 0, reason: Reason::BadMagic }));
    assert_eq!(read_bytes(b""), Err(Problem { offset: 0, reason: Reason::BadMagic }));
    let mut bytes = Builder::sound().bytes();
    bytes[8..16].fill(0xff);
    assert_eq!(read_bytes(&bytes), Err(Problem { offset: 8, reason: Reason::CountTooLarge }));
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = Builder::sound().bytes();
    // The last tensor's data may be followed by padding, so only cuts before its end count.
    for length in 0..bytes.len() {
        assert!(read_bytes(&bytes[..length]).is_err(), "cut to {length} of {}", bytes.len());
    }
}

#[test]
fn a_huge_count_costs_nothing() {
    let mut value = 8u32.to_le_bytes().to_vec();
    value.extend(u64::MAX.to_le_bytes());
    assert_eq!(reason(&Builder::sound().key("x", 9, &value)), Reason::Truncated);
    let mut value = 4u32.to_le_bytes().to_vec();
    value.extend(u64::MAX.to_le_bytes());
    assert_eq!(reason(&Builder::sound().key("x", 9, &value)), Reason::Truncated);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = read_bytes(&bytes);
        let mut with_magic = b"GGUF\x03\0\0\0".to_vec();
        with_magic.extend(bytes);
        let _ = read_bytes(&with_magic);
    }

    #[test]
    fn flipped_bytes_never_panic_and_never_read_past_the_end(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
    ) {
        let mut bytes = Builder::sound().bytes();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(header) = read_bytes(&bytes) {
            prop_assert!(header.data_offset + header.tensor_bytes() <= header.file_bytes);
        }
    }
}

#[test]
fn the_beginning_of_a_file_is_enough_and_less_asks_for_more() {
    let file = Builder::sound().bytes();
    let whole = read(Cursor::new(&file), file.len() as u64).expect("sound");
    let data_offset = usize::try_from(whole.data_offset).expect("small");
    assert_eq!(read_prefix(&file[..data_offset], file.len() as u64), Ok(whole));
    assert_eq!(read_prefix(&file[..100], file.len() as u64), Err(Partial::NeedMore));
}

#[test]
fn a_prefix_of_a_shorter_file_is_damaged() {
    let file = Builder::sound().bytes();
    for cut in 0..file.len() {
        assert!(matches!(read_prefix(&file[..cut], cut as u64), Err(Partial::Damaged(_))), "{cut}");
    }
}
