//! The manager's state: every record, by its key.
//!
//! Invariant: changes only through [`State::apply`], with records that are durable.

use std::collections::BTreeMap;

use format::record::{
    AccessKey, Account, Attachment, ClientToken, Group, Instance, Modification, Record, Server,
    Volume,
};
use model::id::{AccountId, GroupId, InstanceId, ServerId, VolumeId};

#[derive(Debug, Clone, Default)]
pub struct State {
    pub accounts: BTreeMap<AccountId, Account>,
    pub access_keys: BTreeMap<String, AccessKey>,
    pub volumes: BTreeMap<VolumeId, Volume>,
    pub groups: BTreeMap<GroupId, Group>,
    pub attachments: BTreeMap<(VolumeId, InstanceId), Attachment>,
    /// Every modification, oldest first within a volume.
    pub modifications: BTreeMap<(VolumeId, u32), Modification>,
    pub instances: BTreeMap<InstanceId, Instance>,
    pub servers: BTreeMap<ServerId, Server>,
    pub client_tokens: BTreeMap<(AccountId, String), ClientToken>,
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    Put(Record),
    /// Removes whatever record has this one's key.
    Delete(Record),
}

impl State {
    pub fn apply(&mut self, write: &Write) {
        match write {
            Write::Put(record) => self.put(record.clone()),
            Write::Delete(record) => self.delete(record),
        }
    }

    fn put(&mut self, record: Record) {
        match record {
            Record::Account(r) => drop(self.accounts.insert(r.account, r)),
            Record::AccessKey(r) => drop(self.access_keys.insert(r.access_key.clone(), r)),
            Record::Volume(r) => drop(self.volumes.insert(r.volume, r)),
            Record::Group(r) => drop(self.groups.insert(r.config.group, r)),
            Record::Attachment(r) => drop(self.attachments.insert((r.volume, r.instance), r)),
            Record::Modification(r) => drop(self.modifications.insert((r.volume, r.number), r)),
            Record::Instance(r) => drop(self.instances.insert(r.instance, r)),
            Record::Server(r) => drop(self.servers.insert(r.server.clone(), r)),
            Record::ClientToken(r) => {
                drop(self.client_tokens.insert((r.account, r.token.clone()), r));
            }
        }
    }

    fn delete(&mut self, record: &Record) {
        match record {
            Record::Account(r) => drop(self.accounts.remove(&r.account)),
            Record::AccessKey(r) => drop(self.access_keys.remove(&r.access_key)),
            Record::Volume(r) => drop(self.volumes.remove(&r.volume)),
            Record::Group(r) => drop(self.groups.remove(&r.config.group)),
            Record::Attachment(r) => drop(self.attachments.remove(&(r.volume, r.instance))),
            Record::Modification(r) => drop(self.modifications.remove(&(r.volume, r.number))),
            Record::Instance(r) => drop(self.instances.remove(&r.instance)),
            Record::Server(r) => drop(self.servers.remove(&r.server)),
            Record::ClientToken(r) => {
                drop(self.client_tokens.remove(&(r.account, r.token.clone())));
            }
        }
    }

    /// The most recent modification of a volume.
    pub fn latest_modification(&self, volume: VolumeId) -> Option<&Modification> {
        self.modifications.range((volume, 0)..=(volume, u32::MAX)).next_back().map(|(_, m)| m)
    }

    pub fn attachments_of(&self, volume: VolumeId) -> impl Iterator<Item = &Attachment> {
        let low = InstanceId::from_raw(0);
        let high = InstanceId::from_raw(u128::MAX);
        self.attachments.range((volume, low)..=(volume, high)).map(|(_, a)| a)
    }
}
