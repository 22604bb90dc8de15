//! What an opening asks of the drive.

use bytes::{Bytes, BytesMut};

use model::units::BLOCK;

use super::{Opening, journal_device};
use crate::api::{Action, Device, Durability, IoToken, Urgency};

impl Opening {
    pub(super) fn next_token(&mut self) -> IoToken {
        self.token += 1;
        IoToken(self.token - 1)
    }

    pub(super) fn read(&mut self, offset: u64, length: u32, out: &mut Vec<Action>) {
        self.read_from(Device::Data, offset, length, out);
    }

    /// From the ring of batches, wherever it lies.
    pub(super) fn read_journal(&mut self, at: u64, length: u32, out: &mut Vec<Action>) {
        let offset = self.layout.journal_offset + at;
        self.read_from(journal_device(&self.layout), offset, length, out);
    }

    pub(super) fn read_from(
        &mut self,
        device: Device,
        offset: u64,
        length: u32,
        out: &mut Vec<Action>,
    ) {
        let token = self.next_token();
        out.push(Action::ReadDrive { device, token, offset, length });
    }

    pub(super) fn write_zeros(
        &mut self,
        device: Device,
        offset: u64,
        length: u32,
        out: &mut Vec<Action>,
    ) {
        let data = vec![BytesMut::zeroed(usize::try_from(length).expect("small")).freeze()];
        self.write(device, offset, data, Durability::Later, out);
    }

    pub(super) fn flush(&mut self, out: &mut Vec<Action>) {
        out.push(Action::FlushDrive { device: Device::Data, token: self.next_token() });
    }

    pub(super) fn put_superblock(&mut self, out: &mut Vec<Action>) {
        self.superblock.sequence += 1;
        let offset = self.superblock.sequence % 2 * BLOCK;
        let data = vec![self.superblock.encode()];
        // A flush has made durable what it refers to.
        self.write(Device::Data, offset, data, Durability::These, out);
    }

    pub(super) fn write(
        &mut self,
        device: Device,
        offset: u64,
        data: Vec<Bytes>,
        durability: Durability,
        out: &mut Vec<Action>,
    ) {
        let (token, urgency) = (self.next_token(), Urgency::Request);
        out.push(Action::WriteDrive { device, token, offset, data, durability, urgency });
    }
}
