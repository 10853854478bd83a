//! The rotary fields of a configuration. transformers 5 writes one object `rope_parameters` with the theta
//! inside, earlier versions `rope_theta` and `rope_scaling`.

use serde_json::Value;

use super::config::Fields;
use super::{MAX_DIMENSION, Rotation, SpecError};
use crate::spec::{RopeScaling, RotarySpec};

/// One kind of rotation, or two: of layers without and with a window.
pub(super) fn read(
    rotation: &Rotation,
    fields: &Fields<'_>,
    head_dim: usize,
    max_positions: usize,
) -> Result<Vec<RotarySpec>, SpecError> {
    let partial = matches!(rotation, Rotation::Partial);
    let one = |parameters: &Value, theta: &'static str| {
        Source { parameters, fields, theta, partial, head_dim, max_positions }.rotary()
    };
    let (new, old) = (&fields.json["rope_parameters"], &fields.json["rope_scaling"]);
    if matches!(rotation, Rotation::ByLayerType) {
        // Old files scale the table of the layers without a window only.
        let full = if new["full_attention"].is_null() { old } else { &new["full_attention"] };
        let sliding = &new["sliding_attention"];
        return Ok(vec![one(full, "rope_theta")?, one(sliding, "rope_local_base_freq")?]);
    }
    Ok(vec![one(if new.is_null() { old } else { new }, "rope_theta")?])
}

struct Source<'a> {
    /// An object, or null.
    parameters: &'a Value,
    fields: &'a Fields<'a>,
    /// The configuration's own field for the theta.
    theta: &'static str,
    partial: bool,
    head_dim: usize,
    max_positions: usize,
}

impl Source<'_> {
    fn inner(&self) -> Fields<'_> {
        Fields { json: self.parameters, defaults: &[] }
    }

    fn need(&self, name: &str) -> Result<f64, SpecError> {
        self.inner().positive(name)?.ok_or_else(|| {
            SpecError::Invalid(format!("rope_parameters (or rope_scaling) has no {name}"))
        })
    }

    fn rotary(&self) -> Result<RotarySpec, SpecError> {
        let inner = self.inner();
        let theta = match inner.positive("rope_theta")? {
            Some(theta) => Some(theta),
            None => self.fields.positive(self.theta)?,
        };
        let theta =
            theta.ok_or_else(|| SpecError::Invalid(format!("{} is missing", self.theta)))?;
        let dim = self.dim()?;
        let (scaling, factor) = self.scaling(dim)?;
        Ok(RotarySpec { theta, dim, scaling, factor })
    }

    /// Elements of a head that are rotated.
    fn dim(&self) -> Result<usize, SpecError> {
        let name = "partial_rotary_factor";
        let factor = match self.inner().positive(name)? {
            Some(factor) => Some(factor),
            None => self.fields.positive(name)?,
        };
        let factor = factor.unwrap_or(1.0);
        if !self.partial && factor != 1.0 {
            return Err(SpecError::Unsupported(format!("{name} {factor} in this family")));
        }
        let dim = (self.head_dim as f64 * factor) as usize;
        if dim == 0 || dim > self.head_dim || !dim.is_multiple_of(2) {
            let message =
                format!("{name} {factor} leaves {dim} of {} elements of a head", self.head_dim);
            return Err(SpecError::Invalid(message));
        }
        Ok(dim)
    }

    /// The scaling, and what cosines and sines are multiplied by.
    fn scaling(&self, dim: usize) -> Result<(RopeScaling, f64), SpecError> {
        let parameters = self.parameters;
        let kind = [&parameters["rope_type"], &parameters["type"]];
        let kind = kind.into_iter().find_map(Value::as_str).unwrap_or("default");
        match kind {
            "default" => Ok((RopeScaling::None, 1.0)),
            "linear" => Ok((RopeScaling::Linear { factor: self.need("factor")? }, 1.0)),
            "llama3" => {
                let scaling = RopeScaling::Llama3 {
                    factor: self.need("factor")?,
                    low_freq_factor: self.need("low_freq_factor")?,
                    high_freq_factor: self.need("high_freq_factor")?,
                    original_max_position_embeddings: self.original()? as f64,
                };
                Ok((scaling, 1.0))
            }
            // Early files of the one family that rotates in part use other names.
            "longrope" | "su" => self.longrope(dim),
            "yarn" if self.partial => self.longrope(dim),
            "yarn" => self.yarn(),
            other => Err(SpecError::Unsupported(format!(
                "the rope_type {other:?} (default, linear, llama3, yarn and longrope are)"
            ))),
        }
    }

    /// The context length that the model was first trained with.
    fn original(&self) -> Result<usize, SpecError> {
        let name = "original_max_position_embeddings";
        let outer = if self.partial { self.fields.size(name, MAX_DIMENSION)? } else { None };
        Ok(match outer {
            Some(size) => size,
            None => self.inner().size(name, MAX_DIMENSION)?.unwrap_or(self.max_positions),
        })
    }

    fn stretch(&self) -> Result<f64, SpecError> {
        let given = self.inner().positive("factor")?;
        Ok(given.unwrap_or(self.max_positions as f64 / self.original()? as f64))
    }

    fn yarn(&self) -> Result<(RopeScaling, f64), SpecError> {
        let inner = self.inner();
        let factor = self.stretch()?;
        let log = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        let amplitude = match inner.positive("attention_factor")? {
            Some(given) => given,
            None => match (inner.number("mscale")?, inner.number("mscale_all_dim")?) {
                (Some(some), Some(all)) if some != 0.0 && all != 0.0 => log(some) / log(all),
                _ => log(1.0),
            },
        };
        let scaling = RopeScaling::Yarn {
            factor,
            beta_fast: inner.positive("beta_fast")?.unwrap_or(32.0),
            beta_slow: inner.positive("beta_slow")?.unwrap_or(1.0),
            original_max_position_embeddings: self.original()? as f64,
            truncate: self.parameters["truncate"].as_bool().unwrap_or(true),
        };
        Ok((scaling, amplitude))
    }

    fn longrope(&self, dim: usize) -> Result<(RopeScaling, f64), SpecError> {
        let original = self.original()?;
        let factor = self.stretch()?;
        let amplitude = match self.inner().positive("attention_factor")? {
            Some(given) => given,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
        };
        let scaling = RopeScaling::LongRope {
            short: self.factors("short_factor", dim / 2)?,
            long: self.factors("long_factor", dim / 2)?,
            original_max_position_embeddings: original,
        };
        Ok((scaling, amplitude))
    }

    fn factors(&self, name: &str, count: usize) -> Result<Vec<f64>, SpecError> {
        let list = self.parameters[name].as_array().map(Vec::as_slice).unwrap_or_default();
        let factors: Vec<f64> =
            list.iter().filter_map(Value::as_f64).filter(|f| *f > 0.0).collect();
        if factors.len() != count || list.len() != count {
            let message = format!("{name} is not a list of {count} positive numbers");
            return Err(SpecError::Invalid(message));
        }
        Ok(factors)
    }
}
