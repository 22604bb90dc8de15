//! Turns valid bytes into bytes that are nearly so.

use sim::random::Random;

const LENGTH_MAX: usize = 1 << 16;
const INTERESTING: [u64; 16] =
    [0, 1, 7, 15, 16, 17, 39, 40, 255, 256, 4095, 4096, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];

/// A few changes in a row. `other` is something valid to take parts of.
pub fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(4) {
        change(bytes, other, random);
    }
    bytes.truncate(LENGTH_MAX);
}

fn at(length: usize, random: &mut Random) -> usize {
    // Most of what is decided lies in front.
    let bound = if random.chance(50) { length.min(128) } else { length };
    random.below(bound as u64 + 1) as usize
}

fn change(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let place = at(bytes.len(), random);
    let count = 1 + at(bytes.len(), random).min(bytes.len() - place);
    match random.below(9) {
        0..2 => {
            if let Some(byte) = bytes.get_mut(place) {
                *byte ^= 1 << random.below(8);
            }
        }
        2..5 => {
            let value = *random.pick(&INTERESTING);
            let value = value.wrapping_add(random.below(3)).wrapping_sub(1);
            let size = *random.pick(&[1, 2, 4, 8]);
            let source = if random.chance(80) { value.to_le_bytes() } else { value.to_be_bytes() };
            let source = if random.chance(80) { &source[..size] } else { &source[8 - size..] };
            bytes.iter_mut().skip(place).zip(source).for_each(|(byte, &new)| *byte = new);
        }
        5 => {
            let some = (0..1 + random.below(16)).map(|_| random.below(256) as u8);
            drop(bytes.splice(place..place, some.collect::<Vec<_>>()));
        }
        6 => drop(bytes.drain(place..(place + count).min(bytes.len()))),
        7 => {
            let copied = bytes[place..(place + count).min(bytes.len())].to_vec();
            let to = at(bytes.len(), random);
            if bytes.len() + copied.len() <= LENGTH_MAX {
                drop(bytes.splice(to..to, copied));
            }
        }
        _ => {
            let from = at(other.len(), random);
            let part = &other[from..(from + count).min(other.len())];
            let end = (place + part.len()).min(bytes.len());
            drop(bytes.splice(place..end, part.iter().copied()));
        }
    }
}

/// Bytes from nowhere.
pub fn random_bytes(random: &mut Random) -> Vec<u8> {
    let length = at(5000, random);
    (0..length).map(|_| random.below(256) as u8).collect()
}
