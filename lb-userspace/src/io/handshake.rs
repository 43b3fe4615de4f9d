//! Handshakes: TLS 1.3, in which both ends prove the raw public key that the configuration has for them (RFC 7250).
//!
//! Nothing is resumed and nothing is sent early: a recorded session opens nothing. See `docs/design/0009-identity.md`.

use std::{collections::BTreeMap, io, net::IpAddr, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
    server::{
        AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::TLS13,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::identity::{MemberKey, PublicKey};

/// Who is believed: this member's key, and those of its peers.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// This member's key; none in a cluster of one.
    pub own: Option<MemberKey>,
    /// The peers' public keys, by id.
    pub peers: BTreeMap<u8, Vec<PublicKey>>,
}

/// How connections with one peer begin.
#[derive(Clone)]
pub(super) struct Handshake {
    keys: Arc<Pinned>,
    connector: TlsConnector,
    acceptor: TlsAcceptor,
}

/// The keys that one peer may prove, as TLS sends them.
#[derive(Debug)]
struct Pinned {
    keys: Vec<Vec<u8>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Handshake {
    /// For each peer; none without a key of our own.
    pub(super) fn with_all(trust: &Trust) -> Result<BTreeMap<u8, Self>, Error> {
        let Some(own) = &trust.own else { return Ok(BTreeMap::new()) };
        let provider = Arc::new(ring::default_provider());
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(own.to_der().to_vec()));
        let key = provider.key_provider.load_private_key(key)?;
        // In place of a certificate there is the public key alone.
        let own = Arc::new(CertifiedKey::new(vec![CertificateDer::from(own.public().to_der())], key));
        trust.peers.iter().map(|(&id, keys)| Ok((id, Self::with(&provider, &own, keys)?))).collect()
    }

    fn with(provider: &Arc<CryptoProvider>, own: &Arc<CertifiedKey>, keys: &[PublicKey]) -> Result<Self, Error> {
        let algorithms = provider.signature_verification_algorithms;
        let keys = Arc::new(Pinned { keys: keys.iter().map(PublicKey::to_der).collect(), algorithms });
        let mut client = ClientConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&keys) as Arc<dyn ServerCertVerifier>)
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::clone(own))));
        client.resumption = Resumption::disabled();
        let mut server = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::clone(&keys) as Arc<dyn ClientCertVerifier>)
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(Arc::clone(own))));
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let (connector, acceptor) = (TlsConnector::from(Arc::new(client)), TlsAcceptor::from(Arc::new(server)));
        Ok(Self { keys, connector, acceptor })
    }

    /// Begins as the one who dialled.
    pub(super) async fn connect(&self, to: IpAddr, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        Ok(self.connector.connect(ServerName::from(to), stream).await?.into())
    }

    /// Begins as the one who was dialled.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        Ok(self.acceptor.accept(stream).await?.into())
    }

    /// Whether a key, as TLS sends it, is the peer's.
    pub(super) fn is_of_peer(&self, key: &[u8]) -> bool {
        self.keys.keys.iter().any(|pinned| pinned == key)
    }
}

/// The key that the other end has proved.
pub(super) fn proven_key(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    let proven = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    proven.map(|key| key.to_vec()).unwrap_or_default()
}

/// Whether a handshake failed because the other end had another key.
pub(super) fn is_wrong_key(error: &io::Error) -> bool {
    let error = error.get_ref().and_then(|error| error.downcast_ref::<Error>());
    matches!(error, Some(Error::InvalidCertificate(_)))
}

impl Pinned {
    fn check(&self, key: &[u8]) -> Result<(), Error> {
        let is_known = self.keys.iter().any(|pinned| pinned == key);
        if is_known { Ok(()) } else { Err(CertificateError::ApplicationVerificationFailure.into()) }
    }

    fn check_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
    }
}

/// TLS 1.2 is not spoken.
fn not_tls13() -> Error {
    Error::General("TLS 1.2 is not spoken".to_owned())
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(key).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(not_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(key).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(not_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
