//! Who a member is: its key, the public half that its peers are told, and what each pair derives from both.
//!
//! See `docs/design/0009-identity.md`.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    str::FromStr,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::{
    SigningKey, VerifyingKey,
    pkcs8::{
        DecodePrivateKey as _, EncodePrivateKey as _, EncodePublicKey as _, KeypairBytes, spki::der::pem::LineEnding,
    },
};
use hkdf::Hkdf;
use lb_common::hash::HashKey;
use sha2::Sha256;
use zeroize::Zeroizing;

/// Where a member's key is, beside its other state.
pub const KEY_FILE: &str = "member.key";
/// A key file has three lines.
const FILE_BYTES: u64 = 4096;
/// Separates these keys from all others that the same secrets might be used for.
const SALT: &[u8] = b"tandem probe 2";

/// The public half of a member's key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey(VerifyingKey);

/// A member's key.
#[derive(Clone)]
pub struct MemberKey(SigningKey);

/// Why a file holds no member's key.
#[derive(Debug)]
pub enum MemberKeyError {
    /// The system refuses.
    Io(io::Error),
    /// A directory, a pipe.
    NotAFile,
    /// The permission bits let others in.
    TooOpen(u32),
    /// Something else than an Ed25519 key.
    NotAKey,
}

/// Why a text is no public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublicKeyError {
    /// Not base64 of 32 bytes.
    NotBase64,
    /// Not a point of the curve, or one that proves nothing.
    NotAPoint,
}

/// A number that nobody has seen before.
///
/// # Errors
///
/// Those of reading `/dev/urandom`.
pub fn nonce() -> io::Result<u64> {
    let mut bytes = [0; 8];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes).max(1))
}

impl PublicKey {
    /// As TLS sends it: SubjectPublicKeyInfo in DER (RFC 8410).
    pub fn to_der(&self) -> Vec<u8> {
        self.0.to_public_key_der().map(|document| document.into_vec()).unwrap_or_default()
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

impl FromStr for PublicKey {
    type Err = PublicKeyError;

    fn from_str(text: &str) -> Result<Self, PublicKeyError> {
        let bytes = STANDARD.decode(text).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        let key = VerifyingKey::from_bytes(&bytes.ok_or(PublicKeyError::NotBase64)?);
        // A point of small order would agree on the same secret with everybody.
        key.ok().filter(|key| !key.is_weak()).map(Self).ok_or(PublicKeyError::NotAPoint)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl MemberKey {
    /// A new key from the system's random numbers.
    ///
    /// # Errors
    ///
    /// Those of reading `/dev/urandom`.
    pub fn generate() -> io::Result<Self> {
        let mut seed = Zeroizing::new([0; 32]);
        fs::File::open("/dev/urandom")?.read_exact(seed.as_mut())?;
        Ok(Self::from_seed(&seed))
    }

    /// The key of these 32 bytes.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The key in the file at `path`.
    ///
    /// # Errors
    ///
    /// The file cannot be read, can be read by others than its owner, or holds something else.
    pub fn read(path: &Path) -> Result<Self, MemberKeyError> {
        // Opened first, so that what is checked is what is read; without blocking, in case it is a pipe.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(MemberKeyError::NotAFile);
        }
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & 0o177 != 0 {
            return Err(MemberKeyError::TooOpen(mode));
        }
        let mut text = Zeroizing::new(String::new());
        file.take(FILE_BYTES).read_to_string(&mut text).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => MemberKeyError::NotAKey,
            _ => error.into(),
        })?;
        SigningKey::from_pkcs8_pem(&text).map(Self).or(Err(MemberKeyError::NotAKey))
    }

    /// Writes the key to `path`, readable by its owner only; replaces a file there only if `replace`.
    ///
    /// # Errors
    ///
    /// Those of the file system; `AlreadyExists` when there is a file and `replace` is false.
    pub fn write(&self, path: &Path, replace: bool) -> io::Result<()> {
        // Never without a key: the new one is whole before it takes the old one's place.
        let target = if replace { path.with_extension("new") } else { path.to_owned() };
        if replace
            && let Err(error) = fs::remove_file(&target)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target)?;
        file.write_all(self.to_pem().as_bytes())?;
        file.sync_all()?;
        if replace { fs::rename(&target, path) } else { Ok(()) }
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// PKCS #8 in DER, for TLS.
    pub fn to_der(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.pkcs8().to_pkcs8_der().map(|document| document.as_bytes().to_vec()).unwrap_or_default())
    }

    /// The key of the probes between the members `me`, who has this key, and `peer`; `None` for a peer's key that
    /// agrees on the same secret with everybody.
    pub fn probe_key(&self, cluster: &str, me: u8, peer: u8, public: &PublicKey) -> Option<HashKey> {
        let shared = public.0.to_montgomery().mul_clamped(self.0.to_scalar_bytes());
        let shared = Zeroizing::new(shared.to_bytes());
        if *shared == [0; 32] {
            return None;
        }
        let pair = [0, me.min(peer), me.max(peer)];
        let mut key = Zeroizing::new([0; 16]);
        Hkdf::<Sha256>::new(Some(SALT), shared.as_ref())
            .expand_multi_info(&[cluster.as_bytes(), &pair], key.as_mut())
            .ok()?;
        let (low, high) = key.split_at(8);
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        Some([word(low), word(high)])
    }

    /// Version 1, without the public half: what every tool reads.
    fn pkcs8(&self) -> KeypairBytes {
        KeypairBytes { secret_key: self.0.to_bytes(), public_key: None }
    }

    fn to_pem(&self) -> Zeroizing<String> {
        self.pkcs8().to_pkcs8_pem(LineEnding::LF).unwrap_or_default()
    }
}

impl PartialEq for MemberKey {
    fn eq(&self, other: &Self) -> bool {
        self.public() == other.public()
    }
}

impl Eq for MemberKey {}

impl fmt::Debug for MemberKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemberKey({})", self.public())
    }
}

impl MemberKeyError {
    /// What to do about it; `file` is what to give to `tandem cluster keygen`, empty for the default.
    pub fn cure(&self, path: &Path, file: &str) -> String {
        match self {
            Self::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                format!(
                    "`tandem cluster keygen{file}` on this host makes it, and prints the public key for the cluster's file"
                )
            }
            Self::Io(_) | Self::NotAFile => "`tandem run` reads it as root".into(),
            Self::TooOpen(_) => format!("`chmod 600 {}`; if others may have read it, make a new key", path.display()),
            Self::NotAKey => format!(
                "put the member's key back, or `tandem cluster keygen --force{file}` makes a new one, whose public key goes into the cluster's file"
            ),
        }
    }
}

impl fmt::Display for MemberKeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) if error.kind() == io::ErrorKind::NotFound => f.write_str("does not exist"),
            Self::Io(error) => write!(f, "cannot be read: {error}"),
            Self::NotAFile => f.write_str("is not a regular file"),
            Self::TooOpen(mode) => write!(f, "is open to others than its owner (mode {mode:03o})"),
            Self::NotAKey => f.write_str("does not hold an Ed25519 key (PKCS #8, PEM)"),
        }
    }
}

impl From<io::Error> for MemberKeyError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl fmt::Display for PublicKeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotBase64 => "these are not 32 bytes in base64",
            Self::NotAPoint => "no key has this public half",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8) -> MemberKey {
        MemberKey::from_seed(&[seed; 32])
    }

    #[test]
    fn a_pair_agrees_and_every_other_pair_differs() {
        let of = |cluster: &str, me: u8, peer: u8| key(me).probe_key(cluster, me, peer, &key(peer).public()).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for cluster in ["edge-1", "edge-2"] {
            for (a, b) in [(1, 2), (1, 3), (2, 3), (7, 64)] {
                assert_eq!(of(cluster, a, b), of(cluster, b, a));
                assert!(seen.insert(of(cluster, a, b)), "{cluster} {a} {b}");
            }
        }
        // The ids count, not the keys alone.
        let other = key(1).probe_key("edge-1", 1, 4, &key(2).public()).unwrap();
        assert!(seen.insert(other));
        assert_eq!(of("edge-1", 1, 2), EXPECTED, "changed: members of different builds would not hear each other");
    }

    /// Of the seeds 01.. and 02.., computed with Python's `cryptography`.
    const EXPECTED: HashKey = [0x7462_d584_32db_e5f0, 0x3521_bf77_31b8_cd23];

    #[test]
    fn a_written_key_reads_the_same_is_private_and_is_not_replaced_unasked() {
        let path = std::env::temp_dir().join(format!("tandem-member-{}.key", std::process::id()));
        let written = MemberKey::generate().unwrap();
        assert_ne!(written, MemberKey::generate().unwrap());
        written.write(&path, false).unwrap();
        assert_eq!(MemberKey::read(&path).unwrap(), written);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(key(1).write(&path, false).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(MemberKey::read(&path).unwrap(), written);
        key(1).write(&path, true).unwrap();
        assert_eq!(MemberKey::read(&path).unwrap(), key(1));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(MemberKey::read(&path), Err(MemberKeyError::TooOpen(0o640))));
        fs::remove_file(&path).unwrap();
        // As OpenSSL writes it.
        let pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB\n-----END PRIVATE KEY-----\n";
        assert_eq!(*key(1).to_pem(), pem);
        assert!(!format!("{written:?}").contains(&STANDARD.encode(written.0.to_bytes())));
    }

    #[test]
    fn keys_that_prove_nothing_are_refused() {
        let text = key(1).public().to_string();
        assert_eq!(text.parse(), Ok(key(1).public()));
        let of = |bytes: [u8; 32]| STANDARD.encode(bytes).parse::<PublicKey>();
        // The neutral element and a point of order 8 (RFC 7748, section 6.1 warns of them).
        let mut neutral = [0; 32];
        neutral[0] = 1;
        assert_eq!(of(neutral), Err(PublicKeyError::NotAPoint));
        assert_eq!(of([0; 32]), Err(PublicKeyError::NotAPoint));
        // y = 2 is on no point.
        neutral[0] = 2;
        assert_eq!(of(neutral), Err(PublicKeyError::NotAPoint));
        for wrong in ["", "a", &text[1..], &format!("{text}="), &format!(" {text}"), &text.replace('=', "")] {
            assert_eq!(wrong.parse::<PublicKey>(), Err(PublicKeyError::NotBase64), "{wrong}");
        }
    }
}
