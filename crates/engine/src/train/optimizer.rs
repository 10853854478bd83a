//! AdamW with global-norm clipping over an adapter's flat buffer, and its state on disk.
//!
//! The numbers follow `torch.optim.AdamW` and `torch.nn.utils.clip_grad_norm_`. A gradient that is
//! not finite never reaches the update. The learning rate comes from outside (`schedule`).

use std::collections::BTreeMap;
use std::path::Path;

use kernels::AdamW;
use tch::{Device, Kind, Tensor};
use weights::{Dtype, FileError, TensorFile, write_safetensors};

/// The file of the moments in a checkpoint folder.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";

/// The moments of one adapter, flat f32 like its values.
#[derive(Debug)]
pub struct Optimizer {
    m: Tensor,
    v: Tensor,
    /// Updates done, for the bias correction; skipped steps are none.
    updates: u64,
}

/// The settings of one update.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    pub learning_rate: f64,
    pub weight_decay: f64,
    /// 0 means no clipping.
    pub max_grad_norm: f64,
}

/// Why moments could not be read back.
#[derive(Debug, thiserror::Error)]
pub enum OptimizerError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("tensor '{name}' has {found} values; the adapter has {expected}")]
    Length { name: &'static str, found: usize, expected: usize },
}

impl Optimizer {
    /// Zero moments for an adapter of `len` values.
    pub fn new(len: usize, device: Device) -> Self {
        let zeros = || Tensor::zeros([len as i64], (Kind::Float, device));
        Self { m: zeros(), v: zeros(), updates: 0 }
    }

    /// Updates done so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// One update of `values` in place; returns the gradient's norm before clipping. When the norm
    /// is not finite, nothing is changed and the caller decides.
    pub fn update(&mut self, values: &Tensor, grads: &Tensor, update: Update) -> f64 {
        let norm = kernels::sum_of_squares(grads).sqrt();
        if !norm.is_finite() {
            return norm;
        }
        self.updates += 1;
        let settings = AdamW {
            learning_rate: update.learning_rate,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: update.weight_decay,
            step: self.updates,
            grad_scale: clip_factor(norm, update.max_grad_norm),
        };
        kernels::adamw(values, grads, &self.m, &self.v, settings);
        norm
    }

    /// Writes the moments durably. The number of updates is the checkpoint's business.
    ///
    /// # Errors
    /// File errors.
    pub fn save(&self, folder: &Path) -> Result<(), FileError> {
        let (m, v) = (host_values(&self.m), host_values(&self.v));
        let tensors = [("m", m.as_slice()), ("v", v.as_slice())]
            .map(|(name, values)| (name, Dtype::F32, vec![values.len()], values));
        write_safetensors(&folder.join(OPTIMIZER_FILE), tensors, &BTreeMap::new())
    }

    /// Reads what [`save`](Self::save) wrote, for an adapter of `len` values after `updates`
    /// updates.
    ///
    /// # Errors
    /// File errors, and moments of another length.
    pub fn load(
        folder: &Path,
        len: usize,
        updates: u64,
        device: Device,
    ) -> Result<Self, OptimizerError> {
        let file = TensorFile::open(&folder.join(OPTIMIZER_FILE))?;
        let read = |name: &'static str| {
            let values = file.get_f32(name)?;
            if values.len() != len {
                return Err(OptimizerError::Length { name, found: values.len(), expected: len });
            }
            Ok(Tensor::from_slice(&values).to_device(device))
        };
        Ok(Self { m: read("m")?, v: read("v")?, updates })
    }
}

/// What `clip_grad_norm_` multiplies gradients of this norm by.
fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

fn host_values(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.to_device(Device::Cpu)).expect("moments are flat f32 tensors")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clipping_scales_only_what_is_too_long() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert_eq!(clip_factor(5.0, 0.0), 1.0);
        assert!((clip_factor(4.0, 1.0) - 0.25).abs() < 1e-6);
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let values = Tensor::ones([4], (Kind::Float, Device::Cpu));
        let grads = Tensor::from_slice(&[1.0f32, f32::NAN, 0.0, 0.0]);
        let mut optimizer = Optimizer::new(4, Device::Cpu);
        let update = Update { learning_rate: 0.1, weight_decay: 0.1, max_grad_norm: 1.0 };
        assert!(!optimizer.update(&values, &grads, update).is_finite());
        assert_eq!(Vec::<f32>::try_from(&values).unwrap(), [1.0; 4]);
        assert_eq!(optimizer.updates(), 0);
    }

    #[test]
    fn moments_survive_the_disk_bit_by_bit() {
        let folder = tempfile::tempdir().unwrap();
        let values = Tensor::zeros([3], (Kind::Float, Device::Cpu));
        let grads = Tensor::from_slice(&[0.1f32, -0.2, 1e-20]);
        let mut optimizer = Optimizer::new(3, Device::Cpu);
        let update = Update { learning_rate: 0.1, weight_decay: 0.0, max_grad_norm: 0.0 };
        optimizer.update(&values, &grads, update);
        optimizer.save(folder.path()).unwrap();
        let back = Optimizer::load(folder.path(), 3, 1, Device::Cpu).unwrap();
        assert_eq!(host_values(&back.m), host_values(&optimizer.m));
        assert_eq!(host_values(&back.v), host_values(&optimizer.v));
        let other = Optimizer::load(folder.path(), 4, 1, Device::Cpu).unwrap_err();
        assert_eq!(other.to_string(), "tensor 'm' has 3 values; the adapter has 4");
    }
}
