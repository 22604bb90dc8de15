//! Breaks of the engine that can be switched on while it runs, so that the tests that look for
//! such mistakes can be shown to find them.
//!
//! Invariant: without the feature `sabotage`, which no product has, nothing is ever broken.

/// One thing that the engine gets wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// A cycle ends without a flush before its superblock.
    NoFlush,
    /// A freed slot is given away before the record that freed it is durable.
    SlotReusedEarly,
    /// Changes complete when their batch is issued.
    AcknowledgedEarly,
    /// The tail passes records whose content has not been written home.
    TailTooFar,
    /// A page is written with records that are not durable.
    PageAhead,
    /// Recovery believes nothing that says that a batch was durable.
    SealIgnored,
    /// Content leaves memory when its home write is issued.
    OverlayDroppedEarly,
    /// Content is written home before its record is durable.
    HomeAhead,
    /// A page is written over the half that counts.
    PageInPlace,
    /// Payload is not waited for before its record is written.
    PayloadNotAwaited,
    /// As that, but only of payload that goes to blocks of a slot that others share.
    DirectNotAwaited,
    /// A batch that refers to such payload makes only its own bytes durable.
    DirectAlone,
    /// Payload goes straight over blocks that hold something.
    DirectOverContent,
    /// A batch that refers to payload elsewhere makes only its own bytes durable.
    PlaceAlone,
    /// The last batch counts without a look at what it relies on.
    LastBatchUnchecked,
    /// Maps are not written with the descriptors whose halves they name.
    MapLeftBehind,
    /// Maps that a crash left unfinished count.
    LeftOverMapCounts,
    /// A page leaves memory while its image is on its way to the drive.
    PageDroppedEarly,
    /// A page stays unwritten although the tail passes a record that its image lacks.
    PageLeftBehind,
    /// Before the journal's space is used again, the device where it lies apart is flushed, and
    /// not the drive.
    FlushesJournalAlone,
    /// Payload on the drive is not flushed for a batch on another device.
    PayloadNotFlushed,
    /// Whatever lies where the journal should is taken for it.
    JournalUnchecked,
    /// A superblock does not wait until the head of the journal that it names is durable.
    JournalHeadLoose,
    /// An opened drive takes the generation that copies of its journal may have.
    GenerationKept,
    /// A freeze does not wait for the changes that were accepted before it.
    FreezeOvertakes,
    /// A freeze is not written home with its replica's row.
    FreezeNotKept,
    /// A slot that has merged is free before it is durable what was copied from it.
    MergeNotRecorded,
    /// What a layer hides is forgotten when it merges.
    MergeForgetsCleared,
    /// A slot is given away while it is being prepared.
    PreparedNotAwaited,
    /// What was read ahead stays when its slot changes, and is given away whatever its checksum.
    AheadUnchecked,
}

impl std::str::FromStr for Sabotage {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|sabotage| format!("{sabotage:?}") == name);
        found.ok_or_else(|| format!("there is no {name}; there are {:?}", Self::ALL))
    }
}

impl Sabotage {
    pub const ALL: [Self; 30] = [
        Self::NoFlush,
        Self::SlotReusedEarly,
        Self::AcknowledgedEarly,
        Self::TailTooFar,
        Self::PageAhead,
        Self::SealIgnored,
        Self::OverlayDroppedEarly,
        Self::HomeAhead,
        Self::PageInPlace,
        Self::PayloadNotAwaited,
        Self::DirectNotAwaited,
        Self::DirectAlone,
        Self::DirectOverContent,
        Self::PlaceAlone,
        Self::LastBatchUnchecked,
        Self::MapLeftBehind,
        Self::LeftOverMapCounts,
        Self::PageDroppedEarly,
        Self::PageLeftBehind,
        Self::FlushesJournalAlone,
        Self::PayloadNotFlushed,
        Self::JournalUnchecked,
        Self::JournalHeadLoose,
        Self::GenerationKept,
        Self::FreezeOvertakes,
        Self::FreezeNotKept,
        Self::MergeNotRecorded,
        Self::MergeForgetsCleared,
        Self::PreparedNotAwaited,
        Self::AheadUnchecked,
    ];
}

#[cfg(feature = "sabotage")]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Sabotage>> = const { std::cell::Cell::new(None) };
    static SCATTERS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Makes every engine of this thread take slots all over its drive, which is not wrong, but brings
/// a little data on many pages of metadata.
#[cfg(feature = "sabotage")]
pub fn scatter(wanted: bool) {
    SCATTERS.set(wanted);
}

/// Without the feature, slots are taken as in every product.
#[cfg(not(feature = "sabotage"))]
pub fn scatter(_: bool) {}

#[cfg(feature = "sabotage")]
pub(crate) fn scatters() -> bool {
    SCATTERS.get()
}

#[cfg(not(feature = "sabotage"))]
pub(crate) fn scatters() -> bool {
    false
}

/// Breaks every engine of this thread, or none any more.
#[cfg(feature = "sabotage")]
pub fn activate(sabotage: Option<Sabotage>) {
    ACTIVE.set(sabotage);
}

#[cfg(feature = "sabotage")]
pub(crate) fn is_on(sabotage: Sabotage) -> bool {
    ACTIVE.get() == Some(sabotage)
}

#[cfg(not(feature = "sabotage"))]
pub(crate) fn is_on(_: Sabotage) -> bool {
    false
}
