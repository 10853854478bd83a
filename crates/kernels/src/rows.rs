//! Tensor memory as rows of `f32`, and loops over rows on all cores.

use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

/// A matrix in CPU memory whose rows are contiguous and may lie apart (`stride` ≥ `width`).
///
/// Borrowing rules are kept by the callers in this crate: a matrix that is written is written by row, each row
/// by one thread, and is not read through another handle meanwhile.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    data: *mut f32,
    pub len: usize,
    pub width: usize,
    pub stride: usize,
}

// SAFETY: plain memory of a live tensor; disjointness of writes is the callers' duty, stated at each use.
unsafe impl Send for Rows {}
// SAFETY: as above.
unsafe impl Sync for Rows {}

impl Rows {
    /// The rows of a 1-D tensor (one row) or a 2-D tensor.
    ///
    /// # Panics
    /// When the tensor is not `f32`, not on the CPU, or its rows are not contiguous.
    pub fn of(tensor: &Tensor) -> Self {
        assert_eq!(tensor.kind(), Kind::Float, "f32 tensors only");
        assert_eq!(tensor.device(), Device::Cpu, "CPU tensors only");
        let (size, strides) = (tensor.size(), tensor.stride());
        let (len, width, stride) = match size.as_slice() {
            [width] => (1, *width, *width),
            [len, width] => (*len, *width, strides[0]),
            _ => panic!("expected a vector or a matrix, got shape {size:?}"),
        };
        let contiguous = width <= 1 || strides[size.len() - 1] == 1;
        assert!(contiguous, "rows must be contiguous: shape {size:?}, strides {strides:?}");
        Self {
            data: tensor.data_ptr().cast(),
            len: len as usize,
            width: width as usize,
            stride: stride as usize,
        }
    }

    pub fn row(&self, index: usize) -> &[f32] {
        assert!(index < self.len);
        // SAFETY: in bounds of a live tensor (checked above and by `of`); see the type's note on aliasing.
        unsafe { std::slice::from_raw_parts(self.data.add(index * self.stride), self.width) }
    }

    /// One row for writing.
    ///
    /// # Safety
    /// No other reference to this row may be alive.
    #[expect(clippy::mut_from_ref, reason = "rows are handed out to threads one by one")]
    pub unsafe fn row_mut(&self, index: usize) -> &mut [f32] {
        assert!(index < self.len);
        // SAFETY: in bounds as in `row`; the caller vouches for exclusiveness.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(index * self.stride), self.width) }
    }

    /// The address of the element at (`row`, `column`), for matrix products over strided blocks.
    pub fn pointer(&self, row: usize, column: usize) -> *mut f32 {
        assert!(row < self.len && column < self.width);
        // SAFETY: in bounds of the tensor.
        unsafe { self.data.add(row * self.stride + column) }
    }
}

/// The bytes of a contiguous `u8` tensor on the CPU.
pub(crate) fn bytes(tensor: &Tensor) -> &[u8] {
    assert_eq!((tensor.kind(), tensor.device()), (Kind::Uint8, Device::Cpu), "CPU bytes only");
    assert!(tensor.is_contiguous());
    // SAFETY: memory of a live tensor, as long as it has elements; nobody writes it meanwhile.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), tensor.numel()) }
}

/// The same for writing.
///
/// # Safety
/// No other reference to these bytes may be alive.
#[expect(clippy::mut_from_ref, reason = "a tensor is a handle; its memory is shared anyway")]
pub(crate) unsafe fn bytes_mut(tensor: &Tensor) -> &mut [u8] {
    assert_eq!((tensor.kind(), tensor.device()), (Kind::Uint8, Device::Cpu), "CPU bytes only");
    assert!(tensor.is_contiguous());
    // SAFETY: memory of a live tensor, as long as it has elements; the caller vouches for exclusiveness.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), tensor.numel()) }
}

/// The numbers of a contiguous `f32` tensor on the CPU.
pub(crate) fn floats(tensor: &Tensor) -> &[f32] {
    assert_eq!((tensor.kind(), tensor.device()), (Kind::Float, Device::Cpu), "CPU f32 only");
    assert!(tensor.is_contiguous());
    // SAFETY: memory of a live tensor, as long as it has elements; nobody writes it meanwhile.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), tensor.numel()) }
}

/// Lends the numbers of an `f32` tensor, without a copy where they are contiguous on the CPU. `work` must
/// not write to the tensor.
pub fn read_values<R>(tensor: &Tensor, work: impl FnOnce(&[f32]) -> R) -> R {
    work(floats(&tensor.to_device(Device::Cpu).contiguous()))
}

/// Runs `work` for every row index, in contiguous runs of rows, one run per thread. Rows below
/// `MIN_ROWS` stay on the calling thread: waking others would cost more.
pub(crate) fn for_rows(rows: usize, work: impl Fn(usize) + Send + Sync) {
    const MIN_ROWS: usize = 16;
    if rows <= MIN_ROWS {
        return (0..rows).for_each(work);
    }
    (0..rows).into_par_iter().with_min_len(MIN_ROWS).for_each(work);
}
