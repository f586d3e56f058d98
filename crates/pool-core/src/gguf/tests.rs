use proptest::prelude::*;

use super::*;

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn number(out: &mut Vec<u8>, key: &str, value: u32) {
    text(out, key);
    out.extend(4u32.to_le_bytes());
    out.extend(value.to_le_bytes());
}

fn word(out: &mut Vec<u8>, key: &str, value: &str) {
    text(out, key);
    out.extend(8u32.to_le_bytes());
    text(out, value);
}

/// A small file: two layers whose KV heads differ, a vocabulary of three, two tensors.
fn sample() -> Vec<u8> {
    let mut file = b"GGUF".to_vec();
    file.extend(3u32.to_le_bytes());
    file.extend(2u64.to_le_bytes());
    file.extend(9u64.to_le_bytes());
    word(&mut file, "general.architecture", "llama");
    number(&mut file, "llama.block_count", 2);
    number(&mut file, "llama.attention.head_count", 4);
    number(&mut file, "llama.embedding_length", 64);
    number(&mut file, "llama.context_length", 512);
    number(&mut file, "general.file_type", 3);
    word(&mut file, "tokenizer.ggml.model", "gpt2");
    text(&mut file, "llama.attention.head_count_kv");
    for field in [9u32, 4] {
        file.extend(field.to_le_bytes());
    }
    file.extend(2u64.to_le_bytes());
    for heads in [2u32, 1] {
        file.extend(heads.to_le_bytes());
    }
    text(&mut file, "tokenizer.ggml.tokens");
    for field in [9u32, 8] {
        file.extend(field.to_le_bytes());
    }
    file.extend(3u64.to_le_bytes());
    ["a", "b", "c"].iter().for_each(|token| text(&mut file, token));
    for (name, offset) in [("a.weight", 0u64), ("b.weight", 32)] {
        text(&mut file, name);
        file.extend(1u32.to_le_bytes());
        file.extend(8u64.to_le_bytes());
        file.extend(0u32.to_le_bytes());
        file.extend(offset.to_le_bytes());
    }
    file.resize(file.len().next_multiple_of(32) + 64, 0);
    file
}

#[test]
fn a_header_is_read_whole() {
    let file = sample();
    let header = read_header(&file, file.len() as u64).expect("whole");
    assert_eq!((header.architecture.as_str(), header.layers, header.heads), ("llama", 2, 4));
    assert_eq!((header.kv_heads_total, header.key_length, header.vocabulary), (3, 16, 3));
    assert_eq!((header.context_length, header.quantization.as_deref()), (Some(512), Some("Q4_1")));
    assert_eq!((header.tensors, header.tokenizer.as_deref()), (2, Some("gpt2")));
}

#[test]
fn a_file_cut_anywhere_is_damaged_and_a_short_read_wants_more() {
    let file = sample();
    for cut in 0..file.len() {
        let error = read_header(&file[..cut], cut as u64).expect_err("cut");
        assert!(matches!(error, Problem::Corrupt { .. }), "{cut}: {error:?}");
    }
    assert_eq!(read_header(&file[..100], file.len() as u64), Err(Problem::NeedMore));
}

#[test]
fn the_error_names_offset_and_reason() {
    let file = sample();
    let problem = read_header(&file[..file.len() - 1], file.len() as u64 - 1).expect_err("cut");
    let error = problem.into_error("/models/x.gguf");
    assert_eq!(error.code, ErrorCode::CorruptModel);
    assert!(error.message.contains("at byte") && error.message.contains("cut off"), "{}", error.message);
    assert!(error.details.expect("details")["offset"].as_u64().is_some_and(|offset| offset > 0));
    let html = read_header(b"<!DOCTYPE html><html>", 21).expect_err("a web page");
    assert!(html.into_error("x").message.contains("does not start with GGUF"));
}

#[test]
fn huge_counts_are_not_believed() {
    for (at, reason) in [(8, "tensors"), (16, "metadata entries"), (24, "bytes of text")] {
        let mut file = sample();
        file[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        let error = read_header(&file, file.len() as u64).expect_err("huge");
        assert!(format!("{error:?}").contains(reason), "{error:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn mutations_never_panic(at in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut file = sample();
        for (index, byte) in at {
            let index = index.index(file.len());
            file[index] = byte;
        }
        let _ = read_header(&file, file.len() as u64);
    }

    #[test]
    fn noise_behind_the_magic_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
        let file = [b"GGUF\x03\0\0\0".as_slice(), &noise].concat();
        let _ = read_header(&file, file.len() as u64 + 1000);
    }
}
