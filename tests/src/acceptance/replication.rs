//! How soon the owners of a new flow have a record of it.

use anyhow::Result;

use crate::{
    check::Check,
    cluster::{Cluster, Shape},
    traffic::{newcomers, raw},
};

const RATE: u32 = 10_000;
const SECONDS: u32 = 10;
/// `flows` of each member: the budget of new flows shrinks in a table that fills, and these fill less than half of it.
const FLOWS_MAX: u32 = 1 << 20;

pub(super) fn run() -> Result<Vec<Check>> {
    let cluster = Cluster::start(Shape { balancers: 3, servers: 3, naive: false }, |config| {
        config.flows_max = Some(FLOWS_MAX);
    })?;
    for server in &cluster.servers {
        raw::ignore_sources(&server.host.namespace)?;
    }
    let flows = newcomers::open(&cluster, RATE * SECONDS, RATE)?;
    let rate = f64::from(RATE * SECONDS) / flows.opened_in.as_secs_f64();
    let is_even = rate >= 0.95 * f64::from(RATE);
    let ms = |share, bound: f64| {
        let took = flows.percentile(share).map(|took| took.as_secs_f64() * 1e3);
        let figure = took.map_or_else(|| "never".to_owned(), |ms| format!("{ms:.2} ms"));
        Check::new(
            &format!("third packet to the record on primary and backup, p{:.0}", share * 100.0),
            figure,
            format!("≤ {bound:.0} ms"),
            took.is_some_and(|ms| ms <= bound),
        )
    };
    Ok(vec![
        Check::new("new flows a second", format!("{rate:.0}"), format!("≥ {:.0}", 0.95 * f64::from(RATE)), is_even),
        ms(0.5, 1.0),
        ms(0.99, 5.0),
        Check::count_at_most("flows of 10,000 watched that an owner never knew", flows.lost, 0),
    ])
}
