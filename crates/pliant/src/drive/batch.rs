//! How one thread of the portable driver carries out several reads or writes at once: in one call
//! where the file bypasses the page cache, else one after the other.
#![allow(unsafe_code)]

use std::io;

use bytes::Bytes;
use engine::api::IoToken;

use super::{
    Completion, Request,
    aio::{Aio, Ended, Transfer},
    buffer::AlignedBuffer,
    drive_error,
    file::{Bounce, DriveFile},
};

/// What a thread works with.
#[derive(Debug, Default)]
pub(super) struct Hands {
    pub(super) bounce: Bounce,
    /// None where it does not work.
    pub(super) aio: Option<Aio>,
}

impl Hands {
    /// Delivers the bytes as they come.
    pub(super) fn read(
        &mut self,
        file: &DriveFile,
        requests: &[Request],
        mut deliver: impl FnMut(Vec<Completion>),
    ) {
        let reads: Vec<_> = requests.iter().map(as_read).collect();
        let Some(aio) = self.aio.as_mut().filter(|_| reads.len() > 1) else {
            for (token, offset, length) in reads {
                deliver(vec![read_alone(file, token, offset, length)]);
            }
            return;
        };
        let bytes = |length: u32| usize::try_from(length).expect("a 64-bit machine");
        let mut buffers: Vec<_> =
            reads.iter().map(|(_, _, length)| Some(AlignedBuffer::new(bytes(*length)))).collect();
        let transfers: Vec<_> = buffers
            .iter_mut()
            .flatten()
            .zip(&reads)
            .map(|(buffer, (_, offset, length))| {
                let (start, _) = buffer.room();
                // SAFETY: the buffer is used again only when its transfer has ended, and
                // `buffers` outlives the call of `run`.
                unsafe { Transfer::read(*offset, start, bytes(*length)) }
            })
            .collect();
        aio.run(file.descriptor(), &transfers, |ended| {
            let completions = ended.into_iter().map(|(index, result)| {
                let (token, offset, length) = reads[index];
                let mut buffer = buffers[index].take().expect("each ends once");
                match settle(result, bytes(length)) {
                    Settled::Whole => {
                        // SAFETY: the kernel has written all of it.
                        unsafe { buffer.advance(bytes(length)) };
                        Completion::Read { token, result: Ok(buffer.into_bytes()) }
                    }
                    Settled::Failed(error) => {
                        Completion::Read { token, result: Err(drive_error(&error)) }
                    }
                    Settled::Unsettled => read_alone(file, token, offset, length),
                }
            });
            deliver(completions.collect());
        });
    }

    /// Writes that need not be durable yet.
    pub(super) fn write(&mut self, file: &DriveFile, requests: Vec<Request>) -> Vec<Completion> {
        let writes: Vec<_> = requests.into_iter().map(into_write).collect();
        let ended = match &mut self.aio {
            Some(aio) if writes.len() > 1 => write_together(file, aio, &mut self.bounce, &writes),
            _ => Vec::new(),
        };
        let mut settled: Vec<_> = writes.iter().map(|_| Settled::Unsettled).collect();
        for (index, result) in ended {
            let wanted = writes[index].2.iter().map(Bytes::len).sum();
            settled[index] = settle(result, wanted);
        }
        let bounce = &mut self.bounce;
        let completions =
            writes.into_iter().zip(settled).map(|((token, offset, data), settled)| {
                let result = match settled {
                    Settled::Whole => Ok(()),
                    Settled::Failed(error) => Err(error),
                    Settled::Unsettled => file.write(offset, data, bounce),
                };
                Completion::Written { token, result: result.map_err(|e| drive_error(&e)) }
            });
        completions.collect()
    }
}

/// None ended: they do not fit into the buffer.
fn write_together(
    file: &DriveFile,
    aio: &mut Aio,
    bounce: &mut Bounce,
    writes: &[(IoToken, u64, Vec<Bytes>)],
) -> Vec<Ended> {
    let buffer = bounce.buffer();
    let mut places = Vec::with_capacity(writes.len());
    for (_, offset, data) in writes {
        let start = buffer.filled().len();
        for segment in data {
            if buffer.fill(segment) < segment.len() {
                return Vec::new();
            }
        }
        places.push((*offset, start..buffer.filled().len()));
    }
    let bytes = buffer.filled();
    let transfers: Vec<_> = places
        .into_iter()
        // SAFETY: the buffer is borrowed, so nothing changes it until `run` has returned.
        .map(|(offset, place)| unsafe { Transfer::write(offset, &bytes[place]) })
        .collect();
    let mut all = Vec::with_capacity(transfers.len());
    aio.run(file.descriptor(), &transfers, |ended| all.extend(ended));
    all
}

/// What the kernel's answer means.
enum Settled {
    Whole,
    Failed(io::Error),
    /// Not done, or not all: for a system call of its own.
    Unsettled,
}

fn settle(result: io::Result<usize>, wanted: usize) -> Settled {
    match result {
        Ok(count) if count == wanted => Settled::Whole,
        Ok(_) => Settled::Unsettled,
        Err(error) => match error.raw_os_error() {
            // The file system or the kernel does not do this transfer in this way.
            Some(libc::EAGAIN | libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP) => {
                Settled::Unsettled
            }
            _ => Settled::Failed(error),
        },
    }
}

fn read_alone(file: &DriveFile, token: IoToken, offset: u64, length: u32) -> Completion {
    let result = file.read(offset, length).map_err(|e| drive_error(&e));
    Completion::Read { token, result }
}

fn as_read(request: &Request) -> (IoToken, u64, u32) {
    let Request::Read { token, offset, length } = request else { unreachable!("a task of reads") };
    (*token, *offset, *length)
}

fn into_write(request: Request) -> (IoToken, u64, Vec<Bytes>) {
    let Request::Write { token, offset, data, .. } = request else {
        unreachable!("a task of writes")
    };
    (token, offset, data)
}
