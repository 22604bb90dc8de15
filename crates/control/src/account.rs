//! Accounts and their access keys.
//!
//! Decides: that the root account exists, and who may make others.
//! Does not: check signatures.

use format::record::{AccessKey, Account, Record};
use model::{id::AccountId, time::WallTime};

use crate::{
    api::{ApiError, Caller, Done},
    command::{Desk, Outcome},
    machine::RootAccount,
    state::{State, Write},
};

const NAME_CHARS_MAX: usize = 64;
const ACCOUNTS_MAX: usize = 10_000;

/// What is missing of the root account: all of it at the first start, its key when the
/// configured one changed.
pub fn bootstrap(state: &State, root: &RootAccount, wall: WallTime) -> Vec<Write> {
    let mut writes = Vec::new();
    if !state.accounts.contains_key(&root.account) {
        writes.push(Write::Put(Record::Account(Account {
            account: root.account,
            name: "root".to_owned(),
            root: true,
            created: wall,
        })));
    }
    let known = state.access_keys.get(&root.access_key);
    if known.is_none_or(|k| k.secret != root.secret || k.account != root.account) {
        writes.push(Write::Put(Record::AccessKey(AccessKey {
            access_key: root.access_key.clone(),
            secret: root.secret.clone(),
            account: root.account,
            created: wall,
        })));
    }
    writes
}

pub fn create(desk: &mut Desk<'_>, caller: &Caller, name: String) -> Outcome {
    if !caller.root {
        return Err(ApiError::new(
            "UnauthorizedOperation",
            "You are not authorized to perform this operation: only the root account makes \
             accounts.",
        ));
    }
    if name.is_empty() || name.chars().count() > NAME_CHARS_MAX {
        let message = format!("An account's name has 1 to {NAME_CHARS_MAX} characters.");
        return Err(ApiError::new("InvalidParameterValue", message));
    }
    if desk.state.accounts.len() >= ACCOUNTS_MAX {
        let message = format!("There are {ACCOUNTS_MAX} accounts already, which is the limit.");
        return Err(ApiError::new("ResourceLimitExceeded", message));
    }
    let account = loop {
        let id = AccountId::from_random(desk.random.wide());
        if !desk.state.accounts.contains_key(&id) {
            break id;
        }
    };
    let created = desk.wall;
    let account = Account { account, name, root: false, created };
    let key = AccessKey {
        access_key: format!("AKIA{}", base32(desk.random, 16)),
        secret: base32(desk.random, 40),
        account: account.account,
        created,
    };
    let writes = vec![
        Write::Put(Record::Account(account.clone())),
        Write::Put(Record::AccessKey(key.clone())),
    ];
    Ok((writes, Done::Account { account, key }))
}

fn base32(random: &mut crate::random::Random, length: usize) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let digit = |bits: u64| {
        let index = usize::try_from(bits >> 59).expect("five bits");
        char::from(ALPHABET[index])
    };
    (0..length).map(|_| digit(random.bits())).collect()
}
