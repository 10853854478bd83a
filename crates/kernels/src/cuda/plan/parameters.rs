//! The bytes of a kernel's argument, and tensors as kernels see them: address, rows, element type.

use tch::{Kind, Tensor};

/// A C structure, written member by member with the alignment that C gives each.
pub(super) struct Parameters(Vec<u8>);

impl Parameters {
    pub fn new() -> Self {
        Self(Vec::new())
    }

    fn member<const N: usize>(mut self, bytes: [u8; N]) -> Self {
        self.0.resize(self.0.len().next_multiple_of(N), 0);
        self.0.extend(bytes);
        self
    }

    pub fn pointer(self, address: u64) -> Self {
        self.long(address)
    }

    pub fn tensor(self, tensor: &Tensor) -> Self {
        self.pointer(tensor.data_ptr() as u64)
    }

    /// `Rows` of device.h.
    pub fn rows(self, matrix: &Matrix) -> Self {
        self.pointer(matrix.data).long(matrix.stride as u64)
    }

    pub fn long(self, x: u64) -> Self {
        self.member(x.to_ne_bytes())
    }

    pub fn int(self, x: usize) -> Self {
        let x = i32::try_from(x).expect("counts of one row fit in 31 bits");
        self.member(x.to_ne_bytes())
    }

    pub fn float(self, x: f32) -> Self {
        self.member(x.to_ne_bytes())
    }

    /// Every structure holds a pointer, which gives it its alignment.
    pub fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        self.0
    }
}

/// The ending of the kernels' names for these tensors' element type, when they have one in common.
pub(super) fn element(tensors: &[&Tensor]) -> Option<&'static str> {
    let kind = tensors[0].kind();
    let name = match kind {
        Kind::Float => "f32",
        Kind::BFloat16 => "bf16",
        _ => return None,
    };
    tensors.iter().all(|tensor| tensor.kind() == kind).then_some(name)
}

/// Contiguous, of that kind.
pub(super) fn is_plain(tensor: &Tensor, kind: Kind) -> bool {
    tensor.kind() == kind && tensor.is_contiguous()
}

/// A matrix whose rows are contiguous, on any device.
pub(super) struct Matrix {
    pub data: u64,
    pub len: usize,
    pub width: usize,
    pub stride: usize,
    element_bytes: usize,
}

impl Matrix {
    /// The rows of a vector (one row) or a matrix; nothing when rows are not contiguous.
    pub fn of(tensor: &Tensor) -> Option<Self> {
        let (size, strides) = (tensor.size(), tensor.stride());
        let (len, width, stride) = match size.as_slice() {
            [width] => (1, *width, *width),
            [len, width] => (*len, *width, strides[0]),
            _ => return None,
        };
        let contiguous = width <= 1 || strides[size.len() - 1] == 1;
        contiguous.then(|| Self {
            data: tensor.data_ptr() as u64,
            len: len as usize,
            width: width as usize,
            stride: stride as usize,
            element_bytes: tensor.kind().elt_size_in_bytes(),
        })
    }

    /// How many elements fill 16 bytes, when parts of `width` elements of all these rows begin at such steps.
    pub fn are_wide(matrices: &[&Self], width: usize) -> Option<usize> {
        const BYTES: usize = 16;
        let each = BYTES / matrices[0].element_bytes;
        let fits = |m: &&Self| {
            m.data.is_multiple_of(BYTES as u64) && (m.len <= 1 || m.stride.is_multiple_of(each))
        };
        (width.is_multiple_of(each) && matrices.iter().all(fits)).then_some(each)
    }
}
