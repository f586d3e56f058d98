//! A forward pass in single precision, slow and plain, to judge an engine by.
//!
//! Knows the Llama family and Gemma 3, as they are laid out in GGUF files. Works on all positions of
//! a text at once, layer by layer, and computes scores a few positions at a time.

use anyhow::bail;

use crate::reader::Gguf;

/// Base of the rotation in Gemma's layers with a window.
const LOCAL_BASE: f32 = 10_000.0;
/// Every layer of Gemma with this number sees the whole text.
const GLOBAL_EVERY: usize = 6;

/// A model's numbers, and its file for the weights.
pub struct Reference<'a> {
    model: &'a Gguf,
    is_gemma: bool,
    layers: usize,
    width: usize,
    heads: usize,
    key_heads: usize,
    head: usize,
    epsilon: f32,
    base: f32,
    window: usize,
    threads: usize,
}

/// Rows of numbers, one per position.
struct Rows {
    width: usize,
    numbers: Vec<f32>,
}

impl Rows {
    fn iter(&self) -> impl Iterator<Item = &[f32]> {
        self.numbers.chunks(self.width)
    }

    fn add(&mut self, other: &Self) {
        self.numbers.iter_mut().zip(&other.numbers).for_each(|(a, b)| *a += b);
    }
}

impl<'a> Reference<'a> {
    /// Reads the numbers of `model`.
    ///
    /// # Errors
    /// When the architecture is not known here, or a key is missing.
    pub fn new(model: &'a Gguf, threads: usize) -> anyhow::Result<Self> {
        let is_gemma = match model.architecture() {
            "llama" => false,
            "gemma3" => true,
            other => bail!("there is no reference for {other}"),
        };
        let (width, heads) = (model.count("embedding_length")?, model.count("attention.head_count")?);
        let number = |key: &str, default: f64| model.number(key).unwrap_or(default);
        Ok(Self {
            model,
            is_gemma,
            layers: model.count("block_count")?,
            width,
            heads,
            key_heads: model.count("attention.head_count_kv")?,
            head: number("attention.key_length", (width / heads) as f64) as usize,
            epsilon: number("attention.layer_norm_rms_epsilon", 1e-5) as f32,
            base: number("rope.freq_base", 10_000.0) as f32,
            window: number("attention.sliding_window", f64::from(u32::MAX)) as usize,
            threads,
        })
    }

    /// Calls `each` with every position's number and its scores of the whole vocabulary.
    ///
    /// # Errors
    /// When a tensor is missing.
    pub fn scores(&self, tokens: &[u32], mut each: impl FnMut(usize, &[f32])) -> anyhow::Result<()> {
        let embedding = self.model.weights("token_embd.weight")?;
        let mut rows = self.embed(&embedding, tokens);
        for layer in 0..self.layers {
            self.attend(layer, &mut rows)?;
            self.feed_forward(layer, &mut rows)?;
        }
        self.normalise(&mut rows.numbers, &self.model.weights("output_norm.weight")?);
        let output = match self.model.tensors.contains_key("output.weight") {
            true => self.model.weights("output.weight")?,
            false => embedding,
        };
        let few = 16;
        for (part, numbers) in rows.numbers.chunks(few * self.width).enumerate() {
            let rows = Rows { width: self.width, numbers: numbers.to_vec() };
            for (at, scores) in self.product(&output, &rows).iter().enumerate() {
                each(part * few + at, scores);
            }
        }
        Ok(())
    }

    fn embed(&self, embedding: &[f32], tokens: &[u32]) -> Rows {
        let scale = if self.is_gemma { (self.width as f32).sqrt() } else { 1.0 };
        let row = |token: &u32| &embedding[*token as usize * self.width..][..self.width];
        let numbers = tokens.iter().flat_map(row).map(|number| number * scale).collect();
        Rows { width: self.width, numbers }
    }

    fn weights(&self, layer: usize, part: &str) -> anyhow::Result<Vec<f32>> {
        self.model.weights(&format!("blk.{layer}.{part}.weight"))
    }

    /// Root-mean-square norm of each run of as many numbers as there are weights.
    fn normalise(&self, numbers: &mut [f32], weights: &[f32]) {
        for row in numbers.chunks_mut(weights.len()) {
            let square = row.iter().map(|number| number * number).sum::<f32>() / row.len() as f32;
            let scale = 1.0 / (square + self.epsilon).sqrt();
            row.iter_mut().zip(weights).for_each(|(number, weight)| *number *= scale * weight);
        }
    }

    fn normalised(&self, rows: &Rows, layer: usize, part: &str) -> anyhow::Result<Rows> {
        let mut numbers = rows.numbers.clone();
        self.normalise(&mut numbers, &self.weights(layer, part)?);
        Ok(Rows { width: rows.width, numbers })
    }

    fn attend(&self, layer: usize, rows: &mut Rows) -> anyhow::Result<()> {
        let input = self.normalised(rows, layer, "attn_norm")?;
        let mut q = self.product(&self.weights(layer, "attn_q")?, &input);
        let mut k = self.product(&self.weights(layer, "attn_k")?, &input);
        let v = self.product(&self.weights(layer, "attn_v")?, &input);
        if self.is_gemma {
            self.normalise(&mut q.numbers, &self.weights(layer, "attn_q_norm")?);
            self.normalise(&mut k.numbers, &self.weights(layer, "attn_k_norm")?);
        }
        let is_local = self.is_gemma && !(layer + 1).is_multiple_of(GLOBAL_EVERY);
        let (base, window) = if is_local { (LOCAL_BASE, self.window) } else { (self.base, usize::MAX) };
        self.rotate(&mut q, base);
        self.rotate(&mut k, base);
        let mixed = self.mix(&q, &k, &v, window);
        let mut out = self.product(&self.weights(layer, "attn_output")?, &mixed);
        if self.is_gemma {
            self.normalise(&mut out.numbers, &self.weights(layer, "post_attention_norm")?);
        }
        rows.add(&out);
        Ok(())
    }

    fn feed_forward(&self, layer: usize, rows: &mut Rows) -> anyhow::Result<()> {
        let input = self.normalised(rows, layer, "ffn_norm")?;
        let mut gate = self.product(&self.weights(layer, "ffn_gate")?, &input);
        let up = self.product(&self.weights(layer, "ffn_up")?, &input);
        let activate = if self.is_gemma { gelu } else { silu };
        gate.numbers.iter_mut().zip(&up.numbers).for_each(|(gate, up)| *gate = activate(*gate) * up);
        let mut out = self.product(&self.weights(layer, "ffn_down")?, &gate);
        if self.is_gemma {
            self.normalise(&mut out.numbers, &self.weights(layer, "post_ffw_norm")?);
        }
        rows.add(&out);
        Ok(())
    }

    /// Turns pairs of each head by the position. Llama's pairs lie side by side, Gemma's half a
    /// head apart.
    fn rotate(&self, rows: &mut Rows, base: f32) {
        let half = self.head / 2;
        for (position, row) in rows.numbers.chunks_mut(rows.width).enumerate() {
            for head in row.chunks_mut(self.head) {
                for pair in 0..half {
                    let angle = position as f32 * base.powf(-2.0 * pair as f32 / self.head as f32);
                    let (sin, cos) = angle.sin_cos();
                    let (a, b) = if self.is_gemma { (pair, pair + half) } else { (2 * pair, 2 * pair + 1) };
                    (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
                }
            }
        }
    }

    /// Each query's mean of the values before it, weighted by how well the keys fit.
    fn mix(&self, q: &Rows, k: &Rows, v: &Rows, window: usize) -> Rows {
        let scale = 1.0 / (self.head as f32).sqrt();
        let group = self.heads / self.key_heads;
        let mut out = vec![0.0; q.numbers.len()];
        for (position, (query, out)) in q.iter().zip(out.chunks_mut(q.width)).enumerate() {
            let first = (position + 1).saturating_sub(window);
            for (number, (query, out)) in query.chunks(self.head).zip(out.chunks_mut(self.head)).enumerate() {
                let of = |rows: &'_ Rows, at: usize| at * rows.width + number / group * self.head;
                let fit = |at: usize| dot(query, &k.numbers[of(k, at)..][..self.head]) * scale;
                let fits: Vec<f32> = (first..=position).map(fit).collect();
                let best = fits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let weights: Vec<f32> = fits.iter().map(|fit| (fit - best).exp()).collect();
                let all: f32 = weights.iter().sum();
                for (weight, at) in weights.iter().zip(first..) {
                    let value = &v.numbers[of(v, at)..][..self.head];
                    out.iter_mut().zip(value).for_each(|(out, value)| *out += weight / all * value);
                }
            }
        }
        Rows { width: q.width, numbers: out }
    }

    /// Each row times the matrix, whose rows are as long.
    fn product(&self, matrix: &[f32], rows: &Rows) -> Rows {
        let width = matrix.len() / rows.width;
        let part = width.div_ceil(self.threads);
        let columns: Vec<Vec<f32>> = std::thread::scope(|scope| {
            let work = |matrix: &'_ [f32]| -> Vec<f32> {
                matrix.chunks(rows.width).flat_map(|line| rows.iter().map(|row| dot(line, row))).collect()
            };
            let threads: Vec<_> =
                matrix.chunks(part * rows.width).map(|matrix| scope.spawn(move || work(matrix))).collect();
            threads.into_iter().map(|thread| thread.join().expect("plain arithmetic")).collect()
        });
        let count = rows.numbers.len() / rows.width;
        let mut numbers = vec![0.0; count * width];
        for (column, line) in columns.iter().flat_map(|columns| columns.chunks(count)).enumerate() {
            line.iter().enumerate().for_each(|(row, number)| numbers[row * width + column] = *number);
        }
        Rows { width, numbers }
    }
}

/// Sixteen sums side by side, so that the compiler can use wide registers.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, b) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let mut sums = [0.0f32; 16];
    for (a, b) in a.0.iter().zip(b.0) {
        for lane in 0..16 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a.1.iter().zip(b.1).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// The approximation by tanh.
fn gelu(x: f32) -> f32 {
    let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}
