//! What a run costs: at the operator's price of an hour, beside the list of what hosted services charge for a
//! million trained tokens. The operator's list replaces the one here.

use serde::Deserialize;

use crate::wire::advice::{Cost, CostHere, HostedCost};

/// Provider, model, largest base model of the class, price, when it was read and where. All in US dollars.
/// Some are quoted by others: `docs/ADVICE.md` says so.
type Listed = (&'static str, &'static str, Option<f64>, f64, &'static str, &'static str);

const LISTED: [Listed; 5] = [
    (
        "Tinker",
        "Qwen3-8B, LoRA",
        Some(8.2e9),
        0.40,
        "2026-01",
        "the service's price list, as quoted in 2026-01",
    ),
    (
        "Ori",
        "up to 10B, LoRA",
        Some(10e9),
        0.46,
        "undated, read in 2026-11",
        "https://docs.ori.co/fine-tuning/billing",
    ),
    (
        "Together",
        "up to 16B, LoRA",
        Some(16e9),
        0.48,
        "undated, read in 2026-11",
        "https://aicalculators.org/blog/how-much-does-ai-fine-tuning-cost",
    ),
    (
        "OpenAI",
        "gpt-4o-mini",
        None,
        3.00,
        "2026-06",
        "https://tokonomics.ca/blog/llm-fine-tuning-costs-guide",
    ),
    (
        "OpenAI",
        "gpt-4o",
        None,
        25.00,
        "2026-06",
        "https://tokonomics.ca/blog/llm-fine-tuning-costs-guide",
    ),
];

/// Section `[costs]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CostsConfig {
    /// Of one device; 0: not known.
    pub gpu_hour_price: f64,
    pub currency: String,
    pub hosted: Vec<HostedPrice>,
}

/// A price that somebody else asks.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostedPrice {
    pub provider: String,
    /// What is trained for it.
    pub model: String,
    /// The largest base model of its class; absent for a model that the service alone has.
    pub up_to_parameters: Option<f64>,
    pub per_million_tokens: f64,
    pub currency: String,
    /// When the price was read.
    pub as_of: String,
    /// Where.
    pub source: String,
}

impl Default for CostsConfig {
    fn default() -> Self {
        let listed =
            |(provider, model, up_to_parameters, price, as_of, source): Listed| HostedPrice {
                provider: provider.to_owned(),
                model: model.to_owned(),
                up_to_parameters,
                per_million_tokens: price,
                currency: "USD".to_owned(),
                as_of: as_of.to_owned(),
                source: source.to_owned(),
            };
        let hosted = LISTED.map(listed).to_vec();
        Self { gpu_hour_price: 0.0, currency: "USD".to_owned(), hosted }
    }
}

impl CostsConfig {
    /// Of a run that trains so many tokens of all epochs on a base model of so many parameters.
    pub(crate) fn of_run(&self, seconds: f64, trained_tokens: u64, parameters: u64) -> Cost {
        let here = (self.gpu_hour_price > 0.0).then(|| CostHere {
            amount: seconds / 3600.0 * self.gpu_hour_price,
            currency: self.currency.clone(),
            gpu_hour_price: self.gpu_hour_price,
            seconds,
        });
        let fits = |price: &&HostedPrice| {
            price.up_to_parameters.is_none_or(|most| parameters as f64 <= most)
        };
        let hosted = self.hosted.iter().filter(fits).map(|price| HostedCost {
            provider: price.provider.clone(),
            model: price.model.clone(),
            amount: trained_tokens as f64 / 1e6 * price.per_million_tokens,
            currency: price.currency.clone(),
            per_million_tokens: price.per_million_tokens,
            as_of: price.as_of.clone(),
            source: price.source.clone(),
        });
        Cost { here, hosted: hosted.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_priced_by_its_time_here_and_by_its_tokens_elsewhere() {
        let hosted = |up_to_parameters, per_million_tokens| HostedPrice {
            provider: "p".to_owned(),
            model: "m".to_owned(),
            up_to_parameters,
            per_million_tokens,
            currency: "USD".to_owned(),
            as_of: "2026-01".to_owned(),
            source: "s".to_owned(),
        };
        let costs = CostsConfig {
            gpu_hour_price: 3.0,
            currency: "EUR".to_owned(),
            hosted: vec![hosted(Some(1e10), 0.4), hosted(None, 3.0)],
        };
        let small = costs.of_run(1200.0, 2_500_000, 8_000_000_000);
        let here = small.here.unwrap();
        assert_eq!((here.amount, here.currency.as_str()), (1.0, "EUR"));
        let amounts: Vec<f64> = small.hosted.iter().map(|price| price.amount).collect();
        assert_eq!(amounts, [1.0, 7.5]);
        assert_eq!(costs.of_run(1.0, 1, 70_000_000_000).hosted.len(), 1);
        let unknown = CostsConfig { gpu_hour_price: 0.0, ..costs };
        assert!(unknown.of_run(1200.0, 1, 1).here.is_none());
    }
}
