//! One question to a backend, and whether its answer is right.

use std::{io, net::SocketAddr, ops::RangeInclusive, os::fd::AsFd, sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error as TlsError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpSocket, UdpSocket},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{Subject, tunnel::Tunnel};
use crate::config::{BODY_MAX, HealthProbe};

/// Why an answer is not right.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// None came in time.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Late(Duration),
    /// There is no connection, or it broke.
    #[error("{0}")]
    Connection(#[from] io::Error),
    /// It is no TLS.
    #[error("{0}")]
    Tls(#[from] TlsError),
    /// It is no HTTP.
    #[error("{0}")]
    Http(#[from] hyper::Error),
    /// The name cannot be asked for.
    #[error("{0:?} is no name for TLS")]
    Name(String),
    /// Another status than those that are right.
    #[error("status {0}")]
    Status(u16),
    /// The answer does not contain what it should.
    #[error("the answer does not contain {0:?}")]
    Content(String),
}

/// Asks a backend once.
pub(super) async fn ask(subject: &Subject, tunnel: &Tunnel) -> Result<(), Failure> {
    let patience = subject.health.timeout;
    timeout(patience, put_question(subject, tunnel)).await.unwrap_or(Err(Failure::Late(patience)))
}

async fn put_question(subject: &Subject, tunnel: &Tunnel) -> Result<(), Failure> {
    let to = subject.target();
    let enter = |socket: &dyn AsFd| match &subject.sources {
        Some(sources) => tunnel.enter(&socket.as_fd(), sources, subject.server()).map(Some),
        None => Ok(None),
    };
    match &subject.health.probe {
        HealthProbe::Tcp => {
            let socket = tcp_socket(to)?;
            let _way = enter(&socket)?;
            Ok(socket.connect(to).await.map(drop)?)
        }
        HealthProbe::Http { tls, path, host, status, body } => {
            let socket = tcp_socket(to)?;
            let _way = enter(&socket)?;
            let stream = socket.connect(to).await?;
            let host = host.clone().unwrap_or_else(|| to.to_string());
            let question = HttpQuestion { path, host: &host, status, body: body.as_deref() };
            if *tls {
                let name = server_name(&host, to)?;
                let stream = TlsConnector::from(client()?).connect(name, stream).await?;
                question.put(stream).await
            } else {
                question.put(stream).await
            }
        }
        HealthProbe::Udp { send, expect } => {
            let socket = Socket::new(Domain::for_address(to), Type::DGRAM.nonblocking(), None)?;
            let _way = enter(&socket)?;
            socket.connect(&to.into())?;
            let socket = UdpSocket::from_std(socket.into())?;
            socket.send(send.as_bytes()).await?;
            let mut answer = vec![0; BODY_MAX];
            let length = socket.recv(&mut answer).await?;
            contains(&answer[..length], expect.as_deref())
        }
    }
}

/// Closed, it is reset: the last words of an ordinary close come from no socket that the tunnel knows, and would go to the VIP.
fn tcp_socket(to: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
    Ok(socket)
}

struct HttpQuestion<'a> {
    path: &'a str,
    host: &'a str,
    status: &'a RangeInclusive<u16>,
    body: Option<&'a str>,
}

impl HttpQuestion<'_> {
    async fn put(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<(), Failure> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::get(self.path)
            .header(header::HOST, self.host)
            .header(header::USER_AGENT, "tandem")
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status().as_u16();
            if !self.status.contains(&status) {
                return Err(Failure::Status(status));
            }
            let Some(wanted) = self.body else { return Ok(()) };
            let mut body = Limited::new(response.into_body(), BODY_MAX);
            let mut read = Vec::new();
            // Up to the limit: what is beyond it is not looked at.
            while let Some(Ok(frame)) = body.frame().await {
                read.extend(frame.into_data().unwrap_or_default());
            }
            contains(&read, Some(wanted))
        };
        tokio::pin!(exchange);
        tokio::select! {
            // An answer counts, however the connection ends behind it.
            biased;
            answer = &mut exchange => answer,
            // The connection may be over before its last answer is read.
            ended = connection => match ended {
                Ok(()) => exchange.await,
                Err(error) => Err(error.into()),
            },
        }
    }
}

fn contains(answer: &[u8], wanted: Option<&str>) -> Result<(), Failure> {
    let Some(wanted) = wanted else { return Ok(()) };
    let is_there = answer.windows(wanted.len()).any(|window| window == wanted.as_bytes());
    if is_there { Ok(()) } else { Err(Failure::Content(wanted.to_owned())) }
}

/// The name that TLS asks for: that of the host header without its port, or the address.
fn server_name(host: &str, to: SocketAddr) -> Result<ServerName<'static>, Failure> {
    let is_address = host.parse::<SocketAddr>().is_ok();
    let name = if is_address { to.ip().to_string() } else { host.split(':').next().unwrap_or(host).to_owned() };
    ServerName::try_from(name.clone()).map_err(|_invalid| Failure::Name(name))
}

/// TLS of either version to anybody: a check asks whether a server answers, not who it is.
fn client() -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let anybody = Arc::new(Anybody(Arc::clone(&provider)));
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.dangerous().with_custom_certificate_verifier(anybody).with_no_client_auth()))
}

#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
