//! The durable record of attachments: a file that is replaced as a whole.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver, Sender},
    thread,
};

use format::{attachments, ctl::Attach};

const FILE: &str = "attachments";
const NEW_FILE: &str = "attachments.new";

/// What the record holds. Empty when there is none, or none that can be read: the manager then
/// says what is attached.
pub fn load(dir: &Path) -> io::Result<Vec<Attach>> {
    let path = dir.join(FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    Ok(attachments::decode(&bytes).unwrap_or_else(|error| {
        tracing::error!(path = %path.display(), %error, "waiting for the manager instead");
        Vec::new()
    }))
}

/// Saves on a thread of its own, so that no guest waits for this disk.
pub struct Saver {
    /// Unbounded, but the machine saves only when attachments or configurations change.
    sender: Sender<Vec<Attach>>,
}

impl Saver {
    /// `post` is called after each save, in their order.
    pub fn start(dir: PathBuf, post: impl Fn(io::Result<()>) + Send + 'static) -> io::Result<Self> {
        let (sender, receiver): (_, Receiver<Vec<Attach>>) = mpsc::channel();
        thread::Builder::new().name("attachments".to_owned()).spawn(move || {
            for attachments in receiver {
                post(save(&dir, &attachments));
            }
        })?;
        Ok(Self { sender })
    }

    pub fn save(&self, attachments: Vec<Attach>) {
        self.sender.send(attachments).expect("the thread ends when this sender is gone");
    }
}

/// Durable when it returns; a crash on the way leaves the old record.
fn save(dir: &Path, attachments: &[Attach]) -> io::Result<()> {
    let new = dir.join(NEW_FILE);
    let mut file = File::create(&new)?;
    file.write_all(&attachments::encode(attachments))?;
    file.sync_all()?;
    fs::rename(&new, dir.join(FILE))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_replaced_and_a_damaged_one_counts_as_none() {
        let dir = std::env::temp_dir().join(format!("pliant-record-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        assert_eq!(load(&dir).expect("nothing there is no error"), Vec::new());
        save(&dir, &[]).expect("saved");
        assert_eq!(load(&dir).expect("readable"), Vec::new());
        fs::write(dir.join(FILE), b"garbage").expect("written");
        assert_eq!(load(&dir).expect("damage is no error"), Vec::new());
        save(&dir, &[]).expect("saved over the damage");
        assert!(!dir.join(NEW_FILE).exists());
        fs::remove_dir_all(&dir).expect("removed");
    }
}
