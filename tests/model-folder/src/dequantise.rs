//! Blocks of quantised weights, as numbers.

use anyhow::bail;
use half::f16;

/// From the bytes of one block to its weights.
type Decode = fn(&[u8], &mut Vec<f32>);

/// `elements` weights of the type with the number `kind` from the beginning of `bytes`.
///
/// # Errors
/// When the type is not known here.
pub fn all(kind: u32, bytes: &[u8], elements: usize) -> anyhow::Result<Vec<f32>> {
    let (block, block_bytes, decode): (usize, usize, Decode) = match kind {
        0 => (1, 4, |b, out| out.push(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
        1 => (1, 2, |b, out| out.push(half_at(b, 0))),
        2 => (32, 18, q4_0),
        3 => (32, 20, q4_1),
        6 => (32, 22, q5_0),
        8 => (32, 34, q8_0),
        12 => (256, 144, q4_k),
        14 => (256, 210, q6_k),
        other => bail!("tensors of type {other} cannot be dequantised here"),
    };
    let blocks = elements / block;
    let mut out = Vec::with_capacity(elements);
    for each in bytes[..blocks * block_bytes].chunks(block_bytes) {
        decode(each, &mut out);
    }
    Ok(out)
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Low nibbles are the first half of a block, high ones the second.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().map(|byte| byte & 15).chain(bytes.iter().map(|byte| byte >> 4))
}

fn q4_0(b: &[u8], out: &mut Vec<f32>) {
    let scale = half_at(b, 0);
    out.extend(nibbles(&b[2..18]).map(|q| (f32::from(q) - 8.0) * scale));
}

fn q4_1(b: &[u8], out: &mut Vec<f32>) {
    let (scale, least) = (half_at(b, 0), half_at(b, 2));
    out.extend(nibbles(&b[4..20]).map(|q| f32::from(q) * scale + least));
}

fn q5_0(b: &[u8], out: &mut Vec<f32>) {
    let scale = half_at(b, 0);
    let high = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
    let fifth = |number: u32| ((high >> number) & 1) as u8 * 16;
    out.extend(
        (0..).zip(nibbles(&b[6..22])).map(|(number, q)| (f32::from(q + fifth(number)) - 16.0) * scale),
    );
}

fn q8_0(b: &[u8], out: &mut Vec<f32>) {
    let scale = half_at(b, 0);
    out.extend(b[2..34].iter().map(|q| f32::from(*q as i8) * scale));
}

/// Eight sub-blocks of 32, each with a scale and a least value of six bits.
fn q4_k(b: &[u8], out: &mut Vec<f32>) {
    let (scale, least) = (half_at(b, 0), half_at(b, 2));
    let packed = &b[4..16];
    let pair = |j: usize| {
        if j < 4 {
            (packed[j] & 63, packed[j + 4] & 63)
        } else {
            let high = |byte: u8| (byte >> 6) << 4;
            ((packed[j + 4] & 15) | high(packed[j - 4]), (packed[j + 4] >> 4) | high(packed[j]))
        }
    };
    for (group, bytes) in b[16..].chunks(32).enumerate() {
        let (low, high) = (pair(2 * group), pair(2 * group + 1));
        let of = |q: u8, (s, m): (u8, u8)| scale * f32::from(s) * f32::from(q) - least * f32::from(m);
        out.extend(bytes.iter().map(|byte| of(byte & 15, low)));
        out.extend(bytes.iter().map(|byte| of(byte >> 4, high)));
    }
}

/// Sixteen sub-blocks of 16 with scales of eight bits; two bits of each weight lie apart.
fn q6_k(b: &[u8], out: &mut Vec<f32>) {
    let (low, rest) = b.split_at(128);
    let (high, rest) = rest.split_at(64);
    let scale = half_at(rest, 16);
    for index in 0..256 {
        let (half, quarter, lane) = (index / 128, index / 32 % 4, index % 32);
        let nibble = low[half * 64 + quarter % 2 * 32 + lane] >> (quarter / 2 * 4) & 15;
        let top = high[half * 32 + lane] >> (quarter * 2) & 3;
        let q = f32::from(nibble | top << 4) - 32.0;
        out.push(scale * f32::from(rest[index / 16] as i8) * q);
    }
}

#[cfg(test)]
mod tests {
    use super::all;
    use half::f16;

    #[test]
    fn blocks_hold_what_their_formats_say() {
        let one = f16::ONE.to_le_bytes();
        let mut q4_1 = [one, one].concat();
        q4_1.extend([0x21; 16]);
        let weights = all(3, &q4_1, 32).expect("known");
        assert_eq!((weights[0], weights[15], weights[16], weights[31]), (2.0, 2.0, 3.0, 3.0));
        let mut q8_0 = one.to_vec();
        q8_0.extend((0..32u8).map(|q| q.wrapping_sub(3)));
        assert_eq!(all(8, &q8_0, 32).expect("known")[..4], [-3.0, -2.0, -1.0, 0.0]);
        assert!(all(99, &[], 0).is_err());
    }
}
