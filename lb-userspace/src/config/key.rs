//! The cluster's secret and the file it lives in: 32 hex digits and a newline, for its owner's eyes only.

use std::{
    fmt,
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// Hex digits of a key file.
pub const KEY_HEX_DIGITS: usize = 32;

/// The secret that keys the flow hash.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key([u8; KEY_HEX_DIGITS / 2]);

/// Why a key file holds no key.
#[derive(Debug)]
pub enum KeyFileError {
    /// The system refuses.
    Io(io::Error),
    /// A directory, a pipe.
    NotAFile,
    /// The permission bits let others in.
    TooOpen(u32),
    /// That many characters, without white space at the ends.
    WrongSize(usize),
    /// Something else than hex digits.
    NotHex,
}

impl Key {
    /// A new key from the system's random numbers.
    ///
    /// # Errors
    ///
    /// Those of reading `/dev/urandom`.
    pub fn generate() -> io::Result<Self> {
        let mut bytes = [0; KEY_HEX_DIGITS / 2];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The key in the file at `path`.
    ///
    /// # Errors
    ///
    /// The file cannot be read, can be read by others than its owner, or holds something else.
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        // Opened first, so that what is checked is what is read; without blocking, in case it is a pipe.
        let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(KeyFileError::NotAFile);
        }
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & 0o177 != 0 {
            return Err(KeyFileError::TooOpen(mode));
        }
        let mut text = Vec::new();
        file.take(4096).read_to_end(&mut text)?;
        Self::parse(text.trim_ascii())
    }

    /// Writes the key to `path`, readable by its owner only; replaces a file there only if `replace`.
    ///
    /// # Errors
    ///
    /// Those of the file system; `AlreadyExists` when there is a file and `replace` is false.
    pub fn write(&self, path: &Path, replace: bool) -> io::Result<()> {
        if replace {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let digits: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        file.write_all(format!("{digits}\n").as_bytes())?;
        file.sync_all()
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8; KEY_HEX_DIGITS / 2] {
        &self.0
    }

    fn parse(text: &[u8]) -> Result<Self, KeyFileError> {
        if text.len() != KEY_HEX_DIGITS {
            return Err(KeyFileError::WrongSize(text.len()));
        }
        let mut bytes = [0; KEY_HEX_DIGITS / 2];
        for (byte, digits) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            let digit = |at: usize| char::from(digits[at]).to_digit(16).ok_or(KeyFileError::NotHex);
            *byte = (digit(0)? << 4 | digit(1)?) as u8;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl KeyFileError {
    /// What to do about it.
    pub fn cure(&self, path: &Path) -> String {
        match self {
            Self::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                format!("`tandem cluster secret {}` on one member, and copy the file to the others", path.display())
            }
            Self::Io(_) | Self::NotAFile => "`tandem run` reads it as root".into(),
            Self::TooOpen(_) => format!("`chmod 600 {}`", path.display()),
            Self::WrongSize(_) | Self::NotHex => {
                "copy the file of another member, or make a new key for all with `tandem cluster secret`".into()
            }
        }
    }
}

impl fmt::Display for KeyFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) if error.kind() == io::ErrorKind::NotFound => f.write_str("does not exist"),
            Self::Io(error) => write!(f, "cannot be read: {error}"),
            Self::NotAFile => f.write_str("is not a regular file"),
            Self::TooOpen(mode) => write!(f, "is open to others than its owner (mode {mode:03o})"),
            Self::WrongSize(size) => write!(f, "holds {size} characters, a key is {KEY_HEX_DIGITS} hex digits"),
            Self::NotHex => write!(f, "holds something else than {KEY_HEX_DIGITS} hex digits"),
        }
    }
}

impl From<io::Error> for KeyFileError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
