//! What is wrong with the disk, in words for the operator.

use std::io;

/// The engine hands errors on as new ones that only quote the first: gives that one back.
pub(crate) fn plain(error: io::Error) -> io::Error {
    if error.raw_os_error().is_some() {
        return error;
    }
    let text = error.to_string();
    let code = text.strip_prefix("Os { code: ").and_then(|rest| rest.split(',').next()?.parse().ok());
    code.map_or(error, io::Error::from_raw_os_error)
}

/// Of the kind `InvalidData` if the engine's files are not what it wrote.
pub(crate) fn engine_error(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            io::Error::new(io::ErrorKind::InvalidData, "a file of the engine ends too soon")
        }
        sled::Error::Io(error) => plain(error),
        sled::Error::ReportableBug(_) => io::Error::other(error.to_string()),
        other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
    }
}

/// What can be done about it; empty where the error itself says enough.
pub(crate) fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => ": free some space on this disk, then start the node again",
        Some(libc::EIO) => {
            ": the disk fails; if it does so again, replace it and add the node to the cluster anew, with an empty folder"
        }
        Some(libc::EROFS) => ": the disk can only be read; see why in the system's log, then start the node again",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_is_found_again() {
        for code in [libc::ENOSPC, libc::EIO, libc::EROFS] {
            let first = io::Error::from_raw_os_error(code);
            let wrapped = io::Error::new(first.kind(), format!("{first:?}"));
            assert_eq!(wrapped.raw_os_error(), None);
            assert_eq!(plain(wrapped).raw_os_error(), Some(code));
            assert_eq!(plain(first).raw_os_error(), Some(code));
            assert!(!advice(&io::Error::from_raw_os_error(code)).is_empty());
        }
        assert_eq!(plain(io::Error::other("no reason given")).to_string(), "no reason given");
        assert_eq!(advice(&io::Error::other("no reason given")), "");
    }
}
