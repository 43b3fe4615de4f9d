//! A measured figure beside its bound.

/// One figure, its bound, and whether it is within it.
#[derive(Clone, Debug)]
pub struct Check {
    /// What was measured.
    pub name: String,
    /// The figure, with its unit.
    pub figure: String,
    /// The bound, with its relation and unit.
    pub bound: String,
    /// Whether the figure is within the bound.
    pub passed: bool,
}

impl Check {
    /// A count that may be at most `bound`.
    pub fn count_at_most(name: &str, count: u64, bound: u64) -> Self {
        Self::new(name, count.to_string(), format!("≤ {bound}"), count <= bound)
    }

    /// A count that must be at least `bound`.
    pub fn count_at_least(name: &str, count: u64, bound: u64) -> Self {
        Self::new(name, count.to_string(), format!("≥ {bound}"), count >= bound)
    }

    /// A time in milliseconds that may be at most `bound`; none never came.
    pub fn ms_at_most(name: &str, ms: Option<f64>, bound: f64) -> Self {
        let figure = ms.map_or_else(|| "never".to_owned(), |ms| format!("{ms:.0} ms"));
        Self::new(name, figure, format!("≤ {bound:.0} ms"), ms.is_some_and(|ms| ms <= bound))
    }

    /// A figure of any kind.
    pub fn new(name: &str, figure: String, bound: String, passed: bool) -> Self {
        Self { name: name.to_owned(), figure, bound, passed }
    }
}
