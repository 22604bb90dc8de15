//! Accounts and their access keys.
//!
//! Decides: that the root account exists, and who may make others.
//! Does not: check signatures.

use format::record::{AccessKey, Account, Record};
use hmac::{Hmac, KeyInit, Mac};
use model::{id::AccountId, time::WallTime};
use sha2::Sha256;

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
        access_key: format!("AKIA{}", base32(&desk.random.wide().to_be_bytes()[..10])),
        secret: secret(desk),
        account: account.account,
        created,
    };
    let writes = vec![
        Write::Put(Record::Account(account.clone())),
        Write::Put(Record::AccessKey(key.clone())),
    ];
    Ok((writes, Done::Account { account, key }))
}

/// A secret that nobody can work out who does not know root's: what callers get to see of
/// `random` says nothing of it.
fn secret(desk: &mut Desk<'_>) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(desk.params.root.secret.as_bytes())
        .expect("a key of any length will do");
    mac.update(b"access-key");
    mac.update(&desk.random.wide().to_le_bytes());
    mac.update(&desk.random.wide().to_le_bytes());
    let mut secret = base32(&mac.finalize().into_bytes());
    secret.truncate(40);
    secret
}

/// Five bits a character.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let bit = |at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
    let digit =
        |n: usize| (n * 5..n * 5 + 5).fold(0, |value, at| value << 1 | usize::from(bit(at)));
    (0..bytes.len() * 8 / 5).map(|n| char::from(ALPHABET[digit(n)])).collect()
}

#[cfg(test)]
mod tests {
    use super::base32;

    #[test]
    fn base32_is_that_of_rfc_4648() {
        assert_eq!(base32(b"fooba"), "MZXW6YTB");
    }
}
