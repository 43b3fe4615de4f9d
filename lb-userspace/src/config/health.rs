//! `health` of a service: what its backends must answer, how often they are asked, and when they count as dead.

use std::{ops::RangeInclusive, time::Duration};

use serde_json::{Value as Json, json};
use toml::{Spanned, de::DeValue};

use super::{
    problem::{Problem, Problems},
    section::{Section, Value},
    value::{AllDown, CheckKind, CheckPath, Integer, Period, text},
    vip::{Protocol, Vip},
};

const INTERVAL: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(1);
const RISE: u8 = 2;
const FALL: u8 = 3;
/// What is looked at of an answer's body.
pub const BODY_MAX: usize = 64 << 10;

/// How the backends of a service are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// What is asked.
    pub probe: HealthProbe,
    /// What is asked: the VIP through the tunnel, or the backend's own address.
    pub to: CheckPath,
    /// The port, if not the VIP's.
    pub port: Option<u16>,
    /// Between two checks.
    pub interval: Duration,
    /// A random part is added to each interval, at most this.
    pub jitter: Duration,
    /// For how long an answer is waited for.
    pub timeout: Duration,
    /// Successes in a row that make a backend of those that are down one that is up.
    pub rise: u8,
    /// Failures in a row that make it down.
    pub fall: u8,
    /// What becomes of the service when all are down.
    pub all_down: AllDown,
}

/// What a backend is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthProbe {
    /// A connection.
    Tcp,
    /// An HTTP/1.1 request.
    Http {
        /// Over TLS; the certificate is not judged.
        tls: bool,
        /// The path, query included.
        path: String,
        /// The host header, and the name that TLS asks for; the address, if none.
        host: Option<String>,
        /// The status codes that are right.
        status: RangeInclusive<u16>,
        /// What must be in the first `BODY_MAX` bytes of the body.
        body: Option<String>,
    },
    /// A datagram.
    Udp {
        /// What is sent.
        send: String,
        /// What must be in the answer; any answer will do, if nothing.
        expect: Option<String>,
    },
}

/// The right status codes: `200`, `"200-399"`.
struct Status(RangeInclusive<u16>);

impl Value for Status {
    fn what() -> String {
        "a status code or a range of them, 100 to 599, as in 200 or \"200-399\"".into()
    }

    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        if value.as_integer().is_some() {
            let code = Integer::<100, 599>::read(value)?.0 as u16;
            return Ok(Self(code..=code));
        }
        let text = text(value)?;
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let code = |text: &str| text.trim().parse().ok().filter(|code| (100..=599).contains(code));
        match (code(first), code(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self(first..=last)),
            _ => Err("out of range".into()),
        }
    }

    fn schema() -> Json {
        json!({ "anyOf": [
            { "type": "integer", "minimum": 100, "maximum": 599 },
            { "type": "string", "pattern": "^[1-5][0-9]{2}( *- *[1-5][0-9]{2})?$" },
        ] })
    }

    fn written(&self) -> Option<toml::Value> {
        let (first, last) = (*self.0.start(), *self.0.end());
        Some(if first == last { i64::from(first).into() } else { format!("{first}-{last}").into() })
    }
}

/// A text that goes into one line of a request.
struct Line(String);

impl Value for Line {
    fn what() -> String {
        "a text of 1 to 1024 visible ASCII characters".into()
    }

    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let text = text(value)?;
        let is_fine = (1..=1024).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if is_fine { Ok(Self(text.to_owned())) } else { Err(String::new()) }
    }

    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^[!-~]{1,1024}$" })
    }

    fn written(&self) -> Option<toml::Value> {
        Some(self.0.clone().into())
    }
}

/// What is sent to a backend, or expected of it.
struct Words(String);

impl Value for Words {
    fn what() -> String {
        "a text of 1 to 1024 bytes".into()
    }

    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let text = text(value)?;
        if (1..=1024).contains(&text.len()) { Ok(Self(text.to_owned())) } else { Err(String::new()) }
    }

    fn schema() -> Json {
        json!({ "type": "string", "minLength": 1, "maxLength": 1024 })
    }
}

/// Inner `None` for a service that is not checked; outer `None` goes with a problem.
pub(super) fn read(section: Option<Section<'_>>, vips: &[Spanned<Vip>], problems: &Problems) -> Option<Option<Health>> {
    const HOUR: u64 = 3_600_000;
    let Some(mut section) = section else { return Some(None) };
    let at = section.span();
    let kind = section.required::<CheckKind>("type").map(Spanned::into_inner);
    let to = section.or("to", CheckPath::Vip);
    let port = section.optional::<Integer<1, 65_535>>("port").map(|port| port.into_inner().0 as u16);
    let interval = section.or("interval", Period::<100, HOUR>(INTERVAL));
    let timeout = section.or("timeout", Period::<10, 60_000>(TIMEOUT));
    let jitter = section.optional::<Period<0, HOUR>>("jitter").map(|jitter| jitter.into_inner().0);
    let rise = section.or("rise", Integer::<1, 100>(RISE.into()));
    let fall = section.or("fall", Integer::<1, 100>(FALL.into()));
    let all_down = section.or("all_down", AllDown::Keep);
    let questions = Questions::read(&mut section, kind, problems);
    section.finish();
    let kind = kind?;
    if kind == CheckKind::None {
        return Some(None);
    }
    let protocol = if kind == CheckKind::Udp { Protocol::Udp } else { Protocol::Tcp };
    let other = vips.iter().find(|vip| vip.get_ref().port == 0 || vip.get_ref().protocol != protocol);
    if let (None, Some(vip)) = (port, other) {
        let problem = Problem::new("the check needs a `port`: a VIP of the service has none that it could ask");
        problems.push(problem.at(at, "").with(vip.span(), "this one").help("port = 80"));
        return None;
    }
    let interval = interval?.0;
    Some(Some(Health {
        probe: questions?.of(kind)?,
        to: to?,
        port,
        interval,
        jitter: jitter.unwrap_or(interval / 10),
        timeout: timeout?.0,
        rise: rise?.0 as u8,
        fall: fall?.0 as u8,
        all_down: all_down?,
    }))
}

/// What only some kinds of checks have.
struct Questions {
    path: String,
    host: Option<String>,
    status: RangeInclusive<u16>,
    body: Option<String>,
    send: Option<String>,
    expect: Option<String>,
}

impl Questions {
    /// `None` goes with a problem.
    fn read(section: &mut Section<'_>, kind: Option<CheckKind>, problems: &Problems) -> Option<Self> {
        let is_http = matches!(kind, Some(CheckKind::Http | CheckKind::Https));
        let (is_udp, is_known) = (kind == Some(CheckKind::Udp), kind.is_some());
        for (keys, is_right, whose) in
            [(["path", "host", "status", "body"].as_slice(), is_http, "http"), (&["send", "expect"], is_udp, "udp")]
        {
            for key in keys.iter().filter(|key| is_known && !is_right && section.has(key)) {
                let problem = Problem::new(format!("`{key}` is for checks of type \"{whose}\"")).at(section.span(), "");
                problems.push(problem.help("take it out, or change `type`"));
            }
        }
        let path = section.or("path", Line("/".into()));
        let host = section.optional::<Line>("host").map(|host| host.into_inner().0);
        let status = section.or("status", Status(200..=200));
        let body = section.optional::<Words>("body").map(|body| body.into_inner().0);
        let send = section.optional::<Words>("send").map(|send| send.into_inner().0);
        let expect = section.optional::<Words>("expect").map(|expect| expect.into_inner().0);
        if is_udp && !section.has("send") {
            let problem = Problem::new("a check by UDP has nothing to `send`").at(section.span(), "");
            problems.push(problem.help("send = \"ping\""));
        }
        Some(Self { path: path?.0, host, status: status?.0, body, send, expect })
    }

    /// Those of a kind.
    fn of(self, kind: CheckKind) -> Option<HealthProbe> {
        let Self { path, host, status, body, send, expect } = self;
        Some(match kind {
            CheckKind::None | CheckKind::Tcp => HealthProbe::Tcp,
            CheckKind::Http | CheckKind::Https => {
                HealthProbe::Http { tls: kind == CheckKind::Https, path, host, status, body }
            }
            CheckKind::Udp => HealthProbe::Udp { send: send?, expect },
        })
    }
}
