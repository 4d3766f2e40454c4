//! Snapshots as bytes: the same in files, in memory and between nodes, whatever engine holds the rows.
//!
//! ```text
//! "TILLSNAP" | version u32 | length u32 | Applied (protobuf)
//! rows, ascending: key length u32 (> 0) | value length u32 | key without generation | value
//! 0 u32 | number of rows u64 | xxh3-64 of everything before u64        (all little-endian)
//! ```

use std::io::{self, Read, Write};

use bytes::Bytes;
use prost::Message;
use xxhash_rust::xxh3::Xxh3;

use crate::model::tables::RowKey;
use crate::proto::Applied;
use crate::storage::engine::keys;

const MAGIC: &[u8; 8] = b"TILLSNAP";
const VERSION: u32 = 1;
/// No key, row or header is longer: a damaged length must not ask for all memory.
const MAX_FIELD: u32 = 64 << 20;

/// Writes a snapshot.
pub(crate) struct SnapshotWriter<W> {
    out: Hashed<W>,
    rows: u64,
    key: Vec<u8>,
}

impl<W: Write> SnapshotWriter<W> {
    pub(crate) fn new(out: W, applied: &Applied) -> io::Result<Self> {
        let mut out = Hashed { inner: out, hash: Xxh3::new(), len: 0 };
        let applied = applied.encode_to_vec();
        out.put(MAGIC)?;
        out.put(&VERSION.to_le_bytes())?;
        out.put(&length(applied.len())?)?;
        out.put(&applied)?;
        Ok(Self { out, rows: 0, key: Vec::new() })
    }

    /// Rows come in ascending order.
    pub(crate) fn row(&mut self, key: &RowKey, value: &[u8]) -> io::Result<()> {
        self.key.clear();
        keys::encode(key, &mut self.key);
        self.out.put(&length(self.key.len())?)?;
        self.out.put(&length(value.len())?)?;
        self.out.put(&self.key)?;
        self.out.put(value)?;
        self.rows += 1;
        Ok(())
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.out.len
    }

    /// The writer given to `new`, and how many bytes went there.
    pub(crate) fn finish(mut self) -> io::Result<(W, u64)> {
        self.out.put(&0u32.to_le_bytes())?;
        self.out.put(&self.rows.to_le_bytes())?;
        let hash = self.out.hash.digest();
        self.out.put(&hash.to_le_bytes())?;
        Ok((self.out.inner, self.out.len))
    }
}

/// Reads a snapshot. Only when [`SnapshotRows::next_row`] gave `None` it is known to be whole.
pub(crate) struct SnapshotRows<R> {
    input: Hashed<R>,
    pub applied: Applied,
    rows: u64,
    last: Option<RowKey>,
    ended: bool,
}

impl<R: Read> SnapshotRows<R> {
    pub(crate) fn new(input: R) -> io::Result<Self> {
        let mut input = Hashed { inner: input, hash: Xxh3::new(), len: 0 };
        if &input.take::<8>()? != MAGIC {
            return Err(bad("it is not a snapshot"));
        }
        let version = u32::from_le_bytes(input.take()?);
        if version > VERSION {
            return Err(bad("it was written by a newer version"));
        }
        let len = u32::from_le_bytes(input.take()?);
        let applied = Applied::decode(input.bytes(len)?).map_err(|_| bad("its header does not decode"))?;
        Ok(Self { input, applied, rows: 0, last: None, ended: false })
    }

    pub(crate) fn next_row(&mut self) -> io::Result<Option<(RowKey, Bytes)>> {
        if self.ended {
            return Ok(None);
        }
        let key_len = u32::from_le_bytes(self.input.take()?);
        if key_len == 0 {
            self.check_end()?;
            self.ended = true;
            return Ok(None);
        }
        let value_len = u32::from_le_bytes(self.input.take()?);
        let key = self.input.bytes(key_len)?;
        let mut rest = &key[..];
        let key = keys::decode(&mut rest).filter(|_| rest.is_empty()).ok_or_else(|| bad("a key does not decode"))?;
        if self.last.as_ref().is_some_and(|last| *last >= key) {
            return Err(bad("its rows are out of order"));
        }
        self.last = Some(key.clone());
        self.rows += 1;
        Ok(Some((key, self.input.bytes(value_len)?)))
    }

    /// Reads to the end: an error if anything is wrong with it.
    pub(crate) fn verify(mut self) -> io::Result<Applied> {
        while self.next_row()?.is_some() {}
        Ok(self.applied)
    }

    fn check_end(&mut self) -> io::Result<()> {
        let rows = u64::from_le_bytes(self.input.take()?);
        let hash = self.input.hash.digest();
        if rows != self.rows || u64::from_le_bytes(self.input.take()?) != hash {
            return Err(bad("its checksum is wrong"));
        }
        match self.input.inner.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(bad("something follows its end")),
        }
    }
}

/// Whether the bytes are those that were written, without a look at what they say.
pub(crate) fn check_sum(mut input: impl Read) -> io::Result<()> {
    let (mut hash, mut tail, mut buffer) = (Xxh3::new(), Vec::new(), vec![0; 1 << 20]);
    loop {
        let read = match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        // The last eight bytes are the sum of those before.
        tail.extend_from_slice(&buffer[..read]);
        let before = tail.len().saturating_sub(8);
        hash.update(&tail[..before]);
        tail.drain(..before);
    }
    match <[u8; 8]>::try_from(tail.as_slice()) {
        Ok(sum) if u64::from_le_bytes(sum) == hash.digest() => Ok(()),
        _ => Err(bad("its checksum is wrong")),
    }
}

struct Hashed<T> {
    inner: T,
    hash: Xxh3,
    len: u64,
}

impl<W: Write> Hashed<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        self.inner.write_all(bytes)
    }
}

impl<R: Read> Hashed<R> {
    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.inner.read_exact(&mut bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => bad("it is cut off"),
            _ => error,
        })?;
        self.hash.update(&bytes);
        Ok(bytes)
    }

    fn bytes(&mut self, len: u32) -> io::Result<Bytes> {
        if len > MAX_FIELD {
            return Err(bad("a length is impossible"));
        }
        let mut bytes = Vec::new();
        // Grows with what is really there, not with what the length promises.
        (&mut self.inner).take(u64::from(len)).read_to_end(&mut bytes)?;
        if bytes.len() != len as usize {
            return Err(bad("it is cut off"));
        }
        self.hash.update(&bytes);
        Ok(bytes.into())
    }
}

fn length(len: usize) -> io::Result<[u8; 4]> {
    match u32::try_from(len) {
        Ok(len) if len <= MAX_FIELD => Ok(len.to_le_bytes()),
        _ => Err(bad("a row is too long for it")),
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the snapshot cannot be used: {what}"))
}
