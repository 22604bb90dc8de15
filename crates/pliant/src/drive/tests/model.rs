//! Random requests against a model of blocks.

use super::*;

const BLOCKS: u64 = 512;

/// A small generator: what matters is that it is the same for every driver.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Ranges of a batch never overlap: the engine orders what does.
fn ranges(state: &mut u64) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    let mut at = next(state) % 16;
    while at < BLOCKS {
        let blocks = (1 + next(state) % 24).min(BLOCKS - at);
        ranges.push((at, blocks));
        at += blocks + next(state) % 16;
    }
    ranges
}

#[test]
fn ten_thousand_random_requests_agree_with_a_model() {
    for kind in kinds() {
        let folder = Folder::new();
        let mut rig = Rig::open(kind, &folder.drive()).expect("a drive");
        let mut model = vec![0u8; usize::try_from(BLOCKS).expect("small")];
        let (mut state, mut token) = (0x5eed, 0);
        while token < 10_000 {
            let mut batch = Vec::new();
            let mut reads = BTreeMap::new();
            let first = token;
            for (at, blocks) in ranges(&mut state) {
                let choice = next(&mut state);
                let span = usize::try_from(at).expect("small")
                    ..usize::try_from(at + blocks).expect("small");
                let bytes = usize::try_from(blocks * BLOCK).expect("small");
                if choice.is_multiple_of(3) {
                    reads.insert(token, model[span].to_vec());
                    batch.push(read(token, at * BLOCK, u32::try_from(bytes).expect("small")));
                } else {
                    let fill = u8::try_from(choice >> 8 & 0xff).expect("masked");
                    model[span].fill(fill);
                    let data = Bytes::from(vec![fill; bytes + 1]).slice(1..);
                    let cut = usize::try_from(choice >> 16).expect("64 bits") % bytes;
                    let data = vec![data.slice(..cut), data.slice(cut..)];
                    batch.push(write(token, at * BLOCK, data, choice % 3 == 1));
                }
                token += 1;
            }
            if next(&mut state).is_multiple_of(4) {
                batch.push(Request::Flush { token: IoToken(token) });
                token += 1;
            }
            rig.driver.submit(batch);
            for token in first..token {
                match rig.answer(token) {
                    Completion::Read { result, .. } => {
                        let bytes = result.expect("it is read");
                        let found: Vec<_> = bytes
                            .chunks(4096)
                            .map(|b| (b[0], b.iter().all(|c| *c == b[0])))
                            .collect();
                        let wanted: Vec<_> =
                            reads[&token].iter().map(|fill| (*fill, true)).collect();
                        assert_eq!(found, wanted, "{kind:?} request {token}");
                    }
                    Completion::Written { result, .. } | Completion::Flushed { result, .. } => {
                        assert_eq!(result, Ok(()), "{kind:?} request {token}");
                    }
                }
            }
        }
    }
}
