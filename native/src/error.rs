//! What can go wrong in the core, in words a user can act on.

/// One error type for the whole core; the bindings turn each kind into its Python exception.
#[derive(Debug)]
pub enum Error {
    /// A call to the disk failed.
    Io { what: String, source: std::io::Error },
    /// Durable bytes are not what was written.
    Damaged { file: String, offset: u64, what: String },
    /// There is no space for what would have to be written; nothing was accepted.
    Full { what: String },
    /// Another process is the writer of this directory.
    Locked { pid: Option<u32>, stopped: bool },
    /// Something from outside does not fit: a definition, an argument, a file of another kind.
    Invalid { what: String, hint: Option<String> },
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Error {
        Error::Io { what: what.into(), source }
    }

    pub fn damaged(file: impl Into<String>, offset: u64, what: impl Into<String>) -> Error {
        Error::Damaged { file: file.into(), offset, what: what.into() }
    }

    pub fn invalid(what: impl Into<String>) -> Error {
        Error::Invalid { what: what.into(), hint: None }
    }

    pub fn invalid_with(what: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::Invalid { what: what.into(), hint: Some(hint.into()) }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Io { what, source } => write!(f, "{what}: {source}"),
            Error::Damaged { file, offset, what } => {
                write!(f, "{file} is damaged at byte {offset}: {what}")
            }
            Error::Full { what } => write!(f, "no space left: {what}"),
            Error::Locked { pid: Some(pid), stopped } => {
                let stopped = if *stopped { ", which is stopped" } else { "" };
                write!(f, "the data directory is in use by process {pid}{stopped}")
            }
            Error::Locked { pid: None, .. } => f.write_str("the data directory is in use"),
            Error::Invalid { what, hint: None } => f.write_str(what),
            Error::Invalid { what, hint: Some(hint) } => write!(f, "{what}\nhint: {hint}"),
        }
    }
}

impl std::error::Error for Error {}
