//! What kind of history a seed stands for: media, space, memory, where the journal lies, and what is
//! asked for.

use engine::api::Geometry;
use format::disk::JournalPlace;
use model::volume::Media;

use super::requests::Mix;
use crate::random::Random;

#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub geometry: Geometry,
    /// See `engine::sabotage::scatter`.
    pub scattered: bool,
    pub mix: Mix,
    /// Changes and reads under way at once.
    pub in_flight_max: usize,
    /// Somebody reads on where he stopped; only where the engine reads ahead.
    pub streams: bool,
    /// What happens before the first crash: up to so many writes, which move the journal's head.
    pub prefill_max: u64,
    pub steps: u64,
}

impl Plan {
    /// `seed` decides what was thought of later, so that older seeds keep their histories.
    pub fn of(seed: u64, random: &mut Random) -> Self {
        let media = if random.below(3) == 0 { Media::Hdd } else { Media::Ssd };
        // A third of the drives has no room for everything that is asked for.
        let tight = random.below(3) == 0;
        // On a third, what little there is lies on many pages, of which few fit memory.
        let scattered = !tight && random.below(2) == 0;
        let mib = match (media, tight) {
            _ if scattered => 400,
            (Media::Ssd, false) => 16,
            (Media::Ssd, true) => 8,
            (Media::Hdd, false) => 24,
            (Media::Hdd, true) => 12,
        };
        let blocks_max = 256 * (1 + random.below(2) as usize);
        let streams = media == Media::Hdd && Random::new(seed ^ 0x7374_7265_616d_7321).below(3) > 0;
        let mut mix = Mix {
            replicas: 2 + random.below(2),
            blocks_max: if media == Media::Hdd { blocks_max + 256 } else { blocks_max },
            reads: *random.pick(&[0, 10, 30, 60]),
            zeroes: *random.pick(&[0, 10, 15, 40]),
            installs: *random.pick(&[0, 4, 6, 20]),
            large: *random.pick(&[2, 10, 15, 50]),
            layers: *random.pick(&[0, 0, 4, 10, 20]),
        };
        if streams {
            mix.reads = mix.reads.max(40);
        }
        // Slots are to go from hand to hand.
        let mib = if streams && !scattered { mib.min(16) } else { mib };
        let apart = Random::new(seed ^ 0x6a6f_7572_6e61_6c73).below(3) == 0;
        let journal = if apart { JournalPlace::Apart } else { JournalPlace::Inside };
        let geometry = Geometry {
            media,
            drive_bytes: mib << 20,
            journal_bytes: (4 << 20) + (random.below(5) << 16),
            journal,
            replicas_max: 4,
            memory_bytes: if scattered { 80 << 10 } else { 1 << 20 },
        };
        let in_flight_max = *random.pick(&[1, 6, 12, 12, 24]);
        Self { geometry, scattered, mix, in_flight_max, streams, prefill_max: 130, steps: 500 }
    }

    pub fn is_apart(&self) -> bool {
        self.geometry.journal == JournalPlace::Apart
    }

    pub fn slot_bytes(&self) -> u64 {
        u64::from(self.geometry.media.extent_bytes())
    }
}
