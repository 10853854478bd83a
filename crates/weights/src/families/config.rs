//! The fields of a `config.json` into a [`DecoderSpec`], as a family's row says.

use serde_json::Value;

use super::{Bias, Family, MAX_DIMENSION, MAX_LAYERS, Rotation, Scales, SpecError, Window, rope};
use crate::spec::{Activation, DecoderSpec, LayerSpec};

/// The fields of a configuration, with the family's values for absent ones.
pub(super) struct Fields<'a> {
    pub json: &'a Value,
    pub defaults: &'static [(&'static str, f64)],
}

impl Fields<'_> {
    /// A finite number; none when the field is null, or absent without a default.
    pub fn number(&self, name: &str) -> Result<Option<f64>, SpecError> {
        match self.json.get(name) {
            None => Ok(self.defaults.iter().find(|(field, _)| *field == name).map(|(_, v)| *v)),
            Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64().filter(|number| number.is_finite()) {
                Some(number) => Ok(Some(number)),
                None => Err(SpecError::Invalid(format!("{name} is {value}; expected a number"))),
            },
        }
    }

    pub fn positive(&self, name: &str) -> Result<Option<f64>, SpecError> {
        match self.number(name)? {
            Some(number) if number <= 0.0 => {
                Err(SpecError::Invalid(format!("{name} is {number}; expected more than 0")))
            }
            number => Ok(number),
        }
    }

    /// A whole number from 1 to `most`.
    pub fn size(&self, name: &str, most: usize) -> Result<Option<usize>, SpecError> {
        let fail = |value: &dyn std::fmt::Display| {
            let message = format!("{name} is {value}; expected a whole number from 1 to {most}");
            Err(SpecError::Invalid(message))
        };
        match self.json.get(name) {
            Some(value) if !value.is_null() && !value.is_u64() => return fail(value),
            _ => {}
        }
        match self.number(name)? {
            None => Ok(None),
            // At most 2^24 after the check: exact.
            Some(number) if number >= 1.0 && number <= most as f64 => Ok(Some(number as usize)),
            Some(number) => fail(&number),
        }
    }

    fn need(&self, name: &str, most: usize) -> Result<usize, SpecError> {
        self.size(name, most)?.ok_or_else(|| SpecError::Invalid(format!("{name} is missing")))
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool, SpecError> {
        match &self.json[name] {
            Value::Null => Ok(default),
            Value::Bool(flag) => Ok(*flag),
            value => Err(SpecError::Invalid(format!("{name} is {value}; expected true or false"))),
        }
    }
}

pub(super) fn read(family: &Family, config: &Value) -> Result<DecoderSpec, SpecError> {
    let fields = &Fields { json: config, defaults: family.defaults };
    if !config["quantization_config"].is_null() {
        return Err(SpecError::Unsupported("a quantised model folder".into()));
    }
    if fields.flag("use_bidirectional_attention", false)? {
        return Err(SpecError::Unsupported("use_bidirectional_attention".into()));
    }
    let dimension = |name| fields.need(name, MAX_DIMENSION);
    let (hidden_size, heads) = (dimension("hidden_size")?, dimension("num_attention_heads")?);
    let kv_heads = fields.size("num_key_value_heads", MAX_DIMENSION)?.unwrap_or(heads);
    let head_dim = fields.size("head_dim", MAX_DIMENSION)?.unwrap_or(hidden_size / heads);
    if !heads.is_multiple_of(kv_heads) || head_dim == 0 || !head_dim.is_multiple_of(2) {
        return Err(SpecError::Invalid(format!(
            "{heads} heads, {kv_heads} key-value heads and head size {head_dim} do not fit together"
        )));
    }
    let layers = fields.need("num_hidden_layers", MAX_LAYERS)?;
    let max_position_embeddings = dimension("max_position_embeddings")?;
    let rotated = rotated_layers(&family.rotation, fields, layers)?;
    let windows = windows(&family.window, fields, &rotated)?;
    let rotary = rope::read(&family.rotation, fields, head_dim, max_position_embeddings)?;
    let two_tables = rotary.len() == 2;
    let layers = windows.into_iter().zip(rotated).map(|(window, rotated)| LayerSpec {
        window,
        rotary: rotated.then_some(usize::from(two_tables && window.is_some())),
    });
    let (attention_bias, mlp_bias) = match family.bias {
        Bias::Never | Bias::Qkv => (false, false),
        Bias::Attention => (fields.flag("attention_bias", false)?, false),
        Bias::AttentionAndMlp => {
            (fields.flag("attention_bias", false)?, fields.flag("mlp_bias", false)?)
        }
    };
    let softcap = |name| if family.softcaps { fields.positive(name) } else { Ok(None) };
    let mut spec = DecoderSpec {
        model_type: family.model_type.into(),
        hidden_size,
        intermediate_size: dimension("intermediate_size")?,
        num_hidden_layers: layers.len(),
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        vocab_size: dimension("vocab_size")?,
        max_position_embeddings,
        rms_norm_eps: fields
            .positive("rms_norm_eps")?
            .ok_or_else(|| SpecError::Invalid("rms_norm_eps is missing".into()))?,
        norm_placement: family.norms,
        norm_plus_one: family.norm_plus_one,
        qk_norm: family.qk_norm,
        activation: activation(family, config)?,
        tie_word_embeddings: fields.flag("tie_word_embeddings", family.tied)?,
        qkv_bias: attention_bias || matches!(family.bias, Bias::Qkv),
        o_bias: attention_bias,
        mlp_bias,
        fused_projections: family.fused,
        embedding_scale: 1.0,
        residual_scale: 1.0,
        attention_scale: 1.0 / (head_dim as f64).sqrt(),
        logit_scale: 1.0,
        attention_softcap: softcap("attn_logit_softcapping")?,
        logit_softcap: softcap("final_logit_softcapping")?,
        rotary,
        layers: layers.collect(),
    };
    set_scales(&mut spec, &family.scales, fields)?;
    Ok(spec)
}

fn activation(family: &Family, config: &Value) -> Result<Activation, SpecError> {
    let (field, default) = family.activation;
    let value = &config[field];
    match if value.is_null() { default } else { value.as_str().unwrap_or_default() } {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        _ => Err(SpecError::Unsupported(format!(
            "{field} {value} (\"silu\" and \"gelu_pytorch_tanh\" are)"
        ))),
    }
}

fn set_scales(
    spec: &mut DecoderSpec,
    scales: &Scales,
    fields: &Fields<'_>,
) -> Result<(), SpecError> {
    match scales {
        Scales::Usual => {}
        Scales::Gemma => {
            spec.embedding_scale = (spec.hidden_size as f64).sqrt();
            if let Some(scalar) = fields.positive("query_pre_attn_scalar")? {
                spec.attention_scale = 1.0 / scalar.sqrt();
            }
        }
        Scales::Granite => {
            let scale = |name| Ok(fields.positive(name)?.unwrap_or(1.0));
            spec.embedding_scale = scale("embedding_multiplier")?;
            spec.residual_scale = scale("residual_multiplier")?;
            spec.attention_scale = scale("attention_multiplier")?;
            spec.logit_scale = 1.0 / scale("logits_scaling")?;
        }
    }
    Ok(())
}

/// Whether each layer rotates its queries and keys.
fn rotated_layers(
    rotation: &Rotation,
    fields: &Fields<'_>,
    layers: usize,
) -> Result<Vec<bool>, SpecError> {
    if !matches!(rotation, Rotation::SomeLayers) {
        return Ok(vec![true; layers]);
    }
    if let Some(list) = fields.json["no_rope_layers"].as_array() {
        let rotated: Vec<bool> = list.iter().map(|value| *value != 0).take(layers).collect();
        if rotated.len() < layers {
            let message = format!("no_rope_layers has {} entries for {layers} layers", list.len());
            return Err(SpecError::Invalid(message));
        }
        return Ok(rotated);
    }
    let interval = fields.size("no_rope_layer_interval", MAX_LAYERS)?.unwrap_or(4);
    Ok((1..=layers).map(|number| !number.is_multiple_of(interval)).collect())
}

/// The window of each layer.
fn windows(
    rule: &Window,
    fields: &Fields<'_>,
    rotated: &[bool],
) -> Result<Vec<Option<usize>>, SpecError> {
    let layers = rotated.len();
    let optional = matches!(rule, Window::Upper | Window::NotRotated);
    if matches!(rule, Window::Never) || optional && !fields.flag("use_sliding_window", false)? {
        return Ok(vec![None; layers]);
    }
    let window = fields.size("sliding_window", usize::MAX >> 12)?;
    let listed = match rule {
        Window::All => None,
        _ => layer_types(fields, layers)?,
    };
    let sliding = match (rule, listed) {
        (_, Some(listed)) => listed,
        (Window::Upper, None) => {
            let first = fields.number("max_window_layers")?.unwrap_or(0.0);
            (0..layers).map(|layer| layer as f64 >= first).collect()
        }
        (Window::NotRotated, None) => rotated.iter().map(|rotated| !rotated).collect(),
        (Window::AllButEvery(period), None) => {
            let period = fields.size("sliding_window_pattern", MAX_LAYERS)?.unwrap_or(*period);
            (1..=layers).map(|number| !number.is_multiple_of(period)).collect()
        }
        (Window::All | Window::Never, None) => vec![true; layers],
    };
    Ok(sliding.into_iter().map(|sliding| window.filter(|_| sliding)).collect())
}

/// Whether `layer_types`, if it is there, gives each layer a window.
fn layer_types(fields: &Fields<'_>, layers: usize) -> Result<Option<Vec<bool>>, SpecError> {
    let Some(types) = fields.json["layer_types"].as_array() else { return Ok(None) };
    if types.len() != layers {
        let message = format!("layer_types has {} entries for {layers} layers", types.len());
        return Err(SpecError::Invalid(message));
    }
    let sliding = types.iter().map(|kind| match kind.as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => Err(SpecError::Unsupported(format!("the layer type {kind}"))),
    });
    sliding.collect::<Result<_, _>>().map(Some)
}
