//! Figures out of noise.

/// Where a quarter of the figures is smaller: of many short turns, what the least disturbed ones took.
///
/// A disturbance only ever adds time, and often for longer than a turn (a neighbour on the same core, another guest of
/// the same host), so the middle of the turns is no better than the neighbours allow.
pub(crate) fn lower_quartile(figures: &[f64]) -> f64 {
    quantile(figures, 1, 4)
}

/// The middle figure.
pub(crate) fn median(figures: &[f64]) -> f64 {
    quantile(figures, 1, 2)
}

/// Half of the figures lie between these two.
pub(crate) fn middle_half(figures: &[f64]) -> (f64, f64) {
    (quantile(figures, 1, 4), quantile(figures, 3, 4))
}

/// The figure at `part / of` of the way from the least to the greatest; not a number if there is none.
fn quantile(figures: &[f64], part: usize, of: usize) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) * part / of).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_figures_that_were_measured() {
        let figures = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!((lower_quartile(&figures), median(&figures), middle_half(&figures)), (2.0, 3.0, (2.0, 4.0)));
        assert_eq!(median(&[7.0]), 7.0);
        assert!(median(&[]).is_nan());
    }
}
