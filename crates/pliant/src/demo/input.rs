//! Real input for the demo: a file as it is, or a directory as a tar stream.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
};

use anyhow::{Context, bail};

/// The sources that cargo unpacked on this machine: always there after a build.
pub fn default_input() -> anyhow::Result<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let path = home.context("neither CARGO_HOME nor HOME is set; name an input with --input")?;
    let path = path.join("registry/src");
    if !path.is_dir() {
        bail!("{} is not there; name a directory or file with --input", path.display());
    }
    Ok(path)
}

/// Opens a file or directory as one stream of bytes.
pub fn open(path: &Path) -> anyhow::Result<Box<dyn Read>> {
    let metadata = path.metadata().with_context(|| format!("reading {}", path.display()))?;
    if metadata.is_file() {
        return Ok(Box::new(File::open(path)?));
    }
    let (sender, receiver) = sync_channel(16);
    let root = path.to_path_buf();
    std::thread::spawn(move || {
        let mut archive = tar::Builder::new(Pipe { sender });
        archive.follow_symlinks(false);
        let result = archive.append_dir_all(".", &root).and_then(|()| archive.into_inner());
        // An unreadable input shows at the reader as a stream that ends with an error.
        if let Err(error) = result.as_ref() {
            tracing::warn!(%error, root = %root.display(), "reading the input");
        }
    });
    Ok(Box::new(Stream { receiver, rest: Vec::new(), at: 0 }))
}

struct Pipe {
    sender: SyncSender<Vec<u8>>,
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sender.send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Stream {
    receiver: Receiver<Vec<u8>>,
    rest: Vec<u8>,
    at: usize,
}

impl Read for Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.rest.len() {
            let Ok(next) = self.receiver.recv() else { return Ok(0) };
            self.rest = next;
            self.at = 0;
        }
        let take = out.len().min(self.rest.len() - self.at);
        out[..take].copy_from_slice(&self.rest[self.at..self.at + take]);
        self.at += take;
        Ok(take)
    }
}
