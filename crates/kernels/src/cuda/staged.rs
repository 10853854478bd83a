//! Small lists of numbers on a device. Every layer of a pass asks for the same positions and tiles; each copy would
//! make the processor wait for the device, so the last few are kept.

use std::cell::RefCell;
use std::collections::VecDeque;

use tch::{Device, Kind, Tensor};

/// Lists of one pass: positions, two sizes of tiles, targets of a few blocks, and as many again.
const KEPT: usize = 16;

struct List {
    device: Device,
    kind: Kind,
    values: Vec<i64>,
    tensor: Tensor,
}

thread_local! {
    static LISTS: RefCell<VecDeque<List>> = const { RefCell::new(VecDeque::new()) };
}

/// The values as a vector of that kind on the device. Not to be written to.
pub(super) fn staged(values: &[i64], kind: Kind, device: Device) -> Tensor {
    LISTS.with_borrow_mut(|lists| {
        let same = |l: &List| l.device == device && l.kind == kind && l.values == values;
        if let Some(found) = lists.iter().position(same) {
            let list = lists.remove(found).expect("just found");
            let tensor = list.tensor.shallow_clone();
            lists.push_back(list);
            return tensor;
        }
        let tensor = Tensor::from_slice(values).to_kind(kind).to_device(device);
        if lists.len() == KEPT {
            lists.pop_front();
        }
        let values = values.to_vec();
        lists.push_back(List { device, kind, values, tensor: tensor.shallow_clone() });
        tensor
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_values_are_copied_once() {
        let of = |values: &[i64], kind| staged(values, kind, Device::Cpu);
        let first = of(&[1, 2, 3], Kind::Int64);
        assert_eq!(first.data_ptr(), of(&[1, 2, 3], Kind::Int64).data_ptr());
        let other = of(&[1, 2, 3], Kind::Int);
        assert_eq!(
            (other.kind(), Vec::<i32>::try_from(&other).unwrap()),
            (Kind::Int, vec![1, 2, 3])
        );
        for n in 0..KEPT as i64 {
            let _ = of(&[n], Kind::Int64);
        }
        assert_ne!(first.data_ptr(), of(&[1, 2, 3], Kind::Int64).data_ptr());
    }
}
