//! AdamW with global-norm clipping over an adapter's flat buffer, and its state on disk. Moments are f32, or
//! 8-bit codes ([`Moments`]).
//!
//! The numbers follow `torch.optim.AdamW` and `torch.nn.utils.clip_grad_norm_`. A gradient that is
//! not finite never reaches the update. The learning rate comes from outside (`schedule`).

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use domain::hyperparameters::OptimizerKind;
use kernels::AdamW;
use model::{Adapter, Extent};
use tch::{Device, Kind, Tensor};
use weights::{Dtype, FileError, TensorData, TensorFile, write_safetensors};

use super::moments::Moments;

/// The file of the moments in a checkpoint folder.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";

/// AdamW of one run's values.
#[derive(Debug)]
pub struct Optimizer {
    moments: Moments,
    /// The tensors of the values.
    extents: Vec<Extent>,
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
    #[error("tensor '{0}' is of another type; was the optimizer another?")]
    Kind(&'static str),
}

impl Optimizer {
    /// Zero moments for an adapter.
    pub fn new(kind: OptimizerKind, adapter: &Adapter, device: Device) -> Self {
        Self::of_extents(kind, adapter.extents(), device)
    }

    fn of_extents(kind: OptimizerKind, extents: Vec<Extent>, device: Device) -> Self {
        let moments = match kind {
            OptimizerKind::Adamw => Moments::floats(&extents, device),
            OptimizerKind::Adamw8bit => Moments::bytes(&extents, device),
        };
        Self { moments, extents, updates: 0 }
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
        self.moments.update(values, grads, &self.extents, settings);
        norm
    }

    /// Writes the moments durably. The number of updates is the checkpoint's business.
    ///
    /// # Errors
    /// File errors.
    pub fn save(&self, folder: &Path) -> Result<(), FileError> {
        let tensors = self.moments.buffers().into_iter().map(|(name, buffer)| {
            let dtype = if buffer.kind() == Kind::Uint8 { Dtype::U8 } else { Dtype::F32 };
            (name, dtype, vec![buffer.numel()], Buffer(buffer))
        });
        write_safetensors(&folder.join(OPTIMIZER_FILE), tensors, &BTreeMap::new())
    }

    /// Takes what [`save`](Self::save) wrote after `updates` updates.
    ///
    /// # Errors
    /// File errors, and moments of another length or optimizer.
    pub fn load(mut self, folder: &Path, updates: u64) -> Result<Self, OptimizerError> {
        let file = TensorFile::open(&folder.join(OPTIMIZER_FILE))?;
        for (name, buffer) in self.moments.buffers() {
            let view = file.get(name)?;
            let stored = match view.dtype {
                Dtype::U8 => Tensor::from_slice(view.data),
                _ => Tensor::from_slice(&file.get_f32(name)?),
            };
            let (found, expected) = (stored.numel(), buffer.numel());
            if found != expected {
                return Err(OptimizerError::Length { name, found, expected });
            }
            if stored.kind() != buffer.kind() {
                return Err(OptimizerError::Kind(name));
            }
            buffer.shallow_clone().copy_(&stored);
        }
        self.updates = updates;
        Ok(self)
    }
}

/// A moment on its way to a file.
struct Buffer<'a>(&'a Tensor);

impl TensorData for Buffer<'_> {
    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        match self.0.kind() {
            Kind::Uint8 => {
                let bytes = Vec::<u8>::try_from(self.0.to_device(Device::Cpu));
                bytes.map_err(io::Error::other)?.write_to(out)
            }
            _ => kernels::read_values(self.0, |values| values.write_to(out)),
        }
    }
}

/// What `clip_grad_norm_` multiplies gradients of this norm by.
fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 }
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

    fn extents(lens: &[usize]) -> Vec<Extent> {
        let mut offset = 0;
        let extent = |&len: &usize| {
            offset += len;
            Extent { offset: offset - len, len, decays: true }
        };
        lens.iter().map(extent).collect()
    }

    fn optimizer(kind: OptimizerKind, lens: &[usize]) -> Optimizer {
        Optimizer::of_extents(kind, extents(lens), Device::Cpu)
    }

    fn bytes(optimizer: &Optimizer) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        optimizer.save(folder.path()).unwrap();
        std::fs::read(folder.path().join(OPTIMIZER_FILE)).unwrap()
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let values = Tensor::ones([4], (Kind::Float, Device::Cpu));
        let grads = Tensor::from_slice(&[1.0f32, f32::NAN, 0.0, 0.0]);
        let mut optimizer = optimizer(OptimizerKind::Adamw, &[4]);
        let update = Update { learning_rate: 0.1, weight_decay: 0.1, max_grad_norm: 1.0 };
        assert!(!optimizer.update(&values, &grads, update).is_finite());
        assert_eq!(Vec::<f32>::try_from(&values).unwrap(), [1.0; 4]);
        assert_eq!(optimizer.updates(), 0);
    }

    #[test]
    fn moments_survive_the_disk_bit_by_bit() {
        for kind in [OptimizerKind::Adamw, OptimizerKind::Adamw8bit] {
            let lens = [3, 5000, 4097];
            let values = Tensor::zeros([9100], (Kind::Float, Device::Cpu));
            let grads = Tensor::randn([9100], (Kind::Float, Device::Cpu));
            let mut trained = optimizer(kind, &lens);
            let update = Update { learning_rate: 0.1, weight_decay: 0.0, max_grad_norm: 0.0 };
            trained.update(&values, &grads, update);
            let folder = tempfile::tempdir().unwrap();
            trained.save(folder.path()).unwrap();
            let back = optimizer(kind, &lens).load(folder.path(), 1).unwrap();
            assert_eq!(bytes(&back), bytes(&trained));
            let other = optimizer(kind, &[4, 5000, 4097]).load(folder.path(), 1).unwrap_err();
            assert!(other.to_string().starts_with("tensor 'm' has"), "{other}");
        }
    }

    #[test]
    fn what_does_not_decay_keeps_its_size() {
        for kind in [OptimizerKind::Adamw, OptimizerKind::Adamw8bit] {
            let mut extents = extents(&[5000, 10]);
            extents[1].decays = false;
            let mut optimizer = Optimizer::of_extents(kind, extents, Device::Cpu);
            let values = Tensor::ones([5010], (Kind::Float, Device::Cpu));
            let update = Update { learning_rate: 0.1, weight_decay: 1.0, max_grad_norm: 0.0 };
            optimizer.update(&values, &values.zeros_like(), update);
            let values = Vec::<f32>::try_from(&values).unwrap();
            assert!(values[..5000].iter().all(|&value| value == 0.9));
            assert!(values[5000..].iter().all(|&value| value == 1.0));
        }
    }

    /// Fixtures: `tests/golden/optimizer_fixture.py`.
    #[test]
    fn moments_in_8_bits_follow_bitsandbytes() {
        let path = "tests/fixtures/optimizer/golden.safetensors";
        let golden = TensorFile::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
        let floats = |name: &str| golden.get_f32(name).unwrap();
        let values = Tensor::from_slice(&floats("values"));
        let gradients = floats("gradients");
        let lens = [4500, 300, 4096];
        let mut optimizer = optimizer(OptimizerKind::Adamw8bit, &lens);
        for gradient in gradients.chunks(lens.iter().sum()) {
            let update = Update { learning_rate: 1e-2, weight_decay: 0.1, max_grad_norm: 1.0 };
            optimizer.update(&values, &Tensor::from_slice(gradient), update);
        }
        let close = |ours: &Tensor, name: &str, bound: f64| {
            let golden = Tensor::from_slice(&floats(name));
            let distance = ((ours - &golden).norm() / golden.norm()).double_value(&[]);
            assert!(distance < bound, "{name}: {distance:e}");
        };
        // A moment whose last bit differs may become the neighbouring level, a hundredth away.
        close(&values, "final", 1e-5);
        for (name, buffer) in optimizer.moments.buffers() {
            if buffer.kind() == Kind::Float {
                close(buffer, name, 1e-6);
                continue;
            }
            let ours = Vec::<u8>::try_from(buffer).unwrap();
            let theirs = golden.get(name).unwrap().data;
            let pairs = ours.iter().zip(theirs);
            let others = pairs.filter(|(a, b)| a != b).inspect(|(a, b)| {
                assert_eq!(a.abs_diff(**b), 1, "{name}: neighbours at most");
            });
            assert!(others.count() * 1000 < ours.len(), "{name}");
            assert_eq!(ours.len(), theirs.len());
        }
    }
}
