//! The hash by which members find that their configurations differ.

use lb_common::hash::siphash13;

use super::{
    Affinity, AllDown, CheckPath, Cluster, Config, Handoff, Health, HealthProbe, Prefix, Replicate, Service, Vip,
    address,
};

/// Raised when the encoding below changes its meaning.
const ENCODING: u8 = 4;

/// Keyed in the end, so that members with different keys differ and nothing is said about the key.
pub(super) fn cluster(config: &Config) -> u64 {
    let mut digest = Digest::default();
    digest.bytes(&[ENCODING]);
    settings(&mut digest, &config.cluster);
    services(&mut digest, &config.services);
    siphash13(&config.cluster.hash_key.words(), &[digest.0])
}

fn settings(digest: &mut Digest, cluster: &Cluster) {
    digest.text(cluster.name.as_str());
    digest.bytes(&cluster.port.to_be_bytes());
    digest.bytes(&[cluster.probe_misses]);
    digest.bytes(&[match cluster.handoff {
        Handoff::Owner => 0,
        Handoff::Direct => 1,
    }]);
    digest.bytes(&[match cluster.replicate {
        Replicate::Plausible => 0,
        Replicate::FirstPacket => 1,
    }]);
    let timeouts = &cluster.timeouts;
    let of_tcp = [timeouts.young, timeouts.tcp, timeouts.closing, timeouts.reset];
    for duration in of_tcp.into_iter().chain([
        cluster.grace,
        cluster.takeover_after,
        cluster.probe_interval,
        timeouts.udp,
        timeouts.sctp,
        timeouts.sctp_closing,
    ]) {
        digest.bytes(&duration.as_nanos().to_be_bytes());
    }
    let mut sources = cluster.delivery_source.clone();
    sources.sort();
    digest.count(sources.len());
    sources.iter().for_each(|source| prefix(digest, source));
    digest.count(cluster.members.len());
    for member in &cluster.members {
        digest.bytes(&[member.id.get(), u8::from(member.drain)]);
        digest.bytes(&address(member.address));
        digest.count(usize::from(member.second_address.is_some()));
        member.second_address.iter().for_each(|second| digest.bytes(&address(*second)));
        digest.count(usize::from(member.hand_off_source.is_some()));
        member.hand_off_source.iter().for_each(|source| prefix(digest, source));
        let mut keys = member.public_keys.clone();
        keys.sort_by_key(|key| *key.as_bytes());
        digest.count(keys.len());
        keys.iter().for_each(|key| digest.bytes(key.as_bytes()));
    }
}

fn prefix(digest: &mut Digest, prefix: &Prefix) {
    digest.bytes(&address(prefix.address));
    digest.bytes(&[prefix.length]);
}

/// Per VIP, which is a service's identity: that two VIPs are written as one service means nothing.
fn services(digest: &mut Digest, services: &[Service]) {
    let mut vips: Vec<(Vip, &Service)> =
        services.iter().flat_map(|service| service.vips.iter().map(move |vip| (*vip, service))).collect();
    vips.sort_by_key(|(vip, _)| *vip);
    digest.count(vips.len());
    for (vip, service) in vips {
        let key = vip.key();
        digest.bytes(&key.address);
        digest.bytes(&key.port);
        digest.bytes(&[key.protocol]);
        digest.bytes(&[u8::from(service.affinity == Affinity::Source), u8::from(service.echo)]);
        digest.bytes(&service.idle_timeout.unwrap_or_default().as_nanos().to_be_bytes());
        // Nothing for none: members of a version that knows no checks have the same hash.
        service.health.iter().for_each(|checks| health(digest, checks));
        let mut backends: Vec<_> = service.backends.iter().collect();
        backends.sort_by_key(|backend| backend.address);
        digest.count(backends.len());
        for backend in backends {
            digest.bytes(&address(backend.address));
            digest.bytes(&backend.weight.get().to_be_bytes());
            digest.bytes(&[u8::from(backend.drain)]);
        }
    }
}

fn health(digest: &mut Digest, health: &Health) {
    digest.bytes(&[u8::from(health.to == CheckPath::Vip), u8::from(health.all_down == AllDown::Keep)]);
    digest.bytes(&[health.rise, health.fall]);
    digest.bytes(&health.port.unwrap_or_default().to_be_bytes());
    for duration in [health.interval, health.jitter, health.timeout] {
        digest.bytes(&duration.as_nanos().to_be_bytes());
    }
    let mut optional = |text: &Option<String>| digest.text(text.as_deref().unwrap_or_default());
    match &health.probe {
        HealthProbe::Tcp => digest.bytes(&[0]),
        HealthProbe::Http { tls, path, host, status, body } => {
            [host, body].into_iter().for_each(&mut optional);
            digest.text(path);
            digest.bytes(&[1, u8::from(*tls)]);
            [status.start(), status.end()].into_iter().for_each(|code| digest.bytes(&code.to_be_bytes()));
        }
        HealthProbe::Udp { send, expect } => {
            optional(expect);
            digest.text(send);
            digest.bytes(&[2]);
        }
    }
}

/// FNV-1a; every field is of fixed length or has its length before it.
struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn text(&mut self, text: &str) {
        self.count(text.len());
        self.bytes(text.as_bytes());
    }

    fn count(&mut self, count: usize) {
        self.bytes(&(count as u64).to_be_bytes());
    }
}
