//! Whether the processor has what the native build uses without asking.
//!
//! On x86 the C++ library is compiled for AVX2 and its companions with no check at run time, so an
//! older processor would die of an illegal instruction in the middle of a load. The worker asks
//! first.

/// Names of the instruction sets that the native engine of this build needs and that this
/// processor lacks. Empty means that it runs here; always empty without a native engine.
pub fn missing_features() -> Vec<String> {
    if !cfg!(feature = "llama_cpp") {
        return Vec::new();
    }
    required().into_iter().filter(|(_, present)| !present).map(|(name, _)| name.to_owned()).collect()
}

/// What the build sets unconditionally: SSE4.2, AVX, AVX2, BMI2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
fn required() -> Vec<(&'static str, bool)> {
    vec![
        ("sse4.2", std::arch::is_x86_feature_detected!("sse4.2")),
        ("avx", std::arch::is_x86_feature_detected!("avx")),
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("bmi2", std::arch::is_x86_feature_detected!("bmi2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("f16c", std::arch::is_x86_feature_detected!("f16c")),
    ]
}

/// Elsewhere the base architecture is all that is used.
#[cfg(not(target_arch = "x86_64"))]
fn required() -> Vec<(&'static str, bool)> {
    Vec::new()
}
