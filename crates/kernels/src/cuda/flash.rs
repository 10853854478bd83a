//! libtorch's flash attention, for bf16 tensors on a CUDA device: matrix units do its products, which the project's
//! own kernel leaves to ordinary ones. It knows documents, windows, and documents with more keys than queries, so that
//! those which share a beginning or see learned keys get copies of them. It knows no caps on scores, and heads up
//! to 256 that are multiples of 8. The gradient's sums have no fixed order.

use std::ffi::{CStr, c_char};
use std::ptr::null_mut;

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use super::roster::{is_off, note, switch_off};
use super::staged::staged;
use crate::{AttentionShape, Segments};

/// Its name beside those of the kernels.
pub const NAME: &str = "flash_attention";

unsafe extern "C" {
    /// See `shim/flash_attention.cpp`.
    fn finetuned_flash_attention(
        query: *const C_tensor,
        key: *const C_tensor,
        value: *const C_tensor,
        bounds: *const C_tensor,
        key_bounds: *const C_tensor,
        longest: i64,
        longest_keys: i64,
        scale: f64,
        behind: i64,
        out: *mut *mut C_tensor,
        log_sums: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn finetuned_free_text(text: *mut c_char);
}

/// Documents, as libtorch takes them: the last query of each sees its last key.
struct Documents {
    /// Where queries begin and end, i32 `[documents + 1]`, and the most of a document.
    bounds: Tensor,
    longest: i64,
    /// The same of keys.
    key_bounds: Tensor,
    longest_keys: i64,
    /// Rows with queries.
    rows: i64,
    /// The rows that keys stand in, document by document, i64; none when each has just its own.
    key_rows: Option<Tensor>,
}

/// Heads as `[rows, heads, head_dim]`: views of packed rows, keys and values copied where documents share them.
struct Heads {
    query: Tensor,
    key: Tensor,
    value: Tensor,
}

impl Heads {
    fn of(qkv: &Tensor, documents: &Documents, shape: AttentionShape) -> Self {
        let k = shape.kv_heads;
        let seen = keys_and_values(qkv, shape);
        let seen = documents
            .key_rows
            .as_ref()
            .map_or_else(|| seen.shallow_clone(), |rows| seen.index_select(0, rows));
        Self {
            query: heads(&qkv.narrow(0, 0, documents.rows), 0, shape.heads, shape),
            key: heads(&seen, 0, k, shape),
            value: heads(&seen, k, k, shape),
        }
    }
}

/// Some heads of packed rows.
fn heads(rows: &Tensor, first: usize, count: usize, shape: AttentionShape) -> Tensor {
    let (t, d) = (rows.size()[0], shape.head_dim);
    rows.narrow(1, (first * d) as i64, (count * d) as i64).view([t, count as i64, d as i64])
}

/// The columns behind the queries.
fn keys_and_values(qkv: &Tensor, shape: AttentionShape) -> Tensor {
    let [q, kv] = [shape.heads, 2 * shape.kv_heads].map(|count| (count * shape.head_dim) as i64);
    qkv.narrow(1, q, kv)
}

/// As [`crate::attention()`], if it can; false when nothing was done.
pub(super) fn attention(
    qkv: &Tensor,
    segments: &Segments,
    shape: AttentionShape,
    out: &Tensor,
    log_sums: &Tensor,
) -> bool {
    let Some(documents) = documents(qkv, segments, shape) else { return false };
    match forward(&Heads::of(qkv, &documents, shape), &documents, shape) {
        Ok(results) => {
            note(NAME);
            keep(results, shape, out, log_sums);
            true
        }
        Err(reason) => {
            eprintln!("attention goes on in a kernel of ours, libtorch's fails: {reason}");
            switch_off(NAME);
            false
        }
    }
}

/// As [`crate::attention_backward`], if it can; false when nothing was done.
pub(super) fn attention_backward(
    d_out: &Tensor,
    qkv: &Tensor,
    out: &Tensor,
    log_sums: &Tensor,
    segments: &Segments,
    shape: AttentionShape,
    d_qkv: &Tensor,
) -> bool {
    let Some(documents) = documents(qkv, segments, shape) else { return false };
    let Heads { query, key, value } = Heads::of(qkv, &documents, shape);
    let (d_out, out) = (heads(d_out, 0, shape.heads, shape), heads(out, 0, shape.heads, shape));
    let log_sums = log_sums.tr().contiguous();
    // Of dropout, which there is none of.
    let state = Tensor::zeros([2], (Kind::Int64, qkv.device()));
    let gradients = Tensor::f_internal_flash_attention_backward(
        &d_out,
        &query,
        &key,
        &value,
        &out,
        &log_sums,
        &documents.bounds,
        &documents.key_bounds,
        documents.longest,
        documents.longest_keys,
        0.0,
        true,
        &state,
        &state,
        shape.scale,
        behind(shape),
        None,
    );
    match gradients {
        Ok(gradients) => {
            note(NAME);
            keep_gradients(gradients, &documents, shape, d_qkv);
            true
        }
        Err(error) => {
            eprintln!(
                "attention's gradient goes on in a kernel of ours, libtorch's fails: {error}"
            );
            switch_off(NAME);
            false
        }
    }
}

/// The documents of a batch that libtorch's kernel computes; none when it is another's.
fn documents(qkv: &Tensor, segments: &Segments, shape: AttentionShape) -> Option<Documents> {
    let takes = qkv.device().is_cuda()
        && qkv.kind() == Kind::BFloat16
        && shape.softcap.is_none()
        && shape.head_dim <= 256
        && shape.head_dim.is_multiple_of(8)
        && is_aligned(qkv)
        && !is_off(NAME);
    takes.then(|| bounds(qkv, segments)).flatten()
}

fn bounds(qkv: &Tensor, segments: &Segments) -> Option<Documents> {
    let longest = segments.iter().map(|segment| segment.rows.len()).max()?;
    // For documents of one token it has a special way, which is not worth a second proof.
    if longest < 2 {
        return None;
    }
    let device = qkv.device();
    let sums = |lengths: &mut dyn Iterator<Item = usize>| {
        let mut end = 0;
        let ends = lengths.map(|length| {
            end += length as i64;
            end
        });
        let bounds: Vec<i64> = std::iter::once(0).chain(ends).collect();
        staged(&bounds, Kind::Int, device)
    };
    let bounds = sums(&mut segments.iter().map(|segment| segment.rows.len()));
    let rows = segments.rows() as i64;
    let shares = segments.iter().any(|segment| !segment.before.is_empty());
    if !shares {
        // Rows behind the queries, which nobody sees, would be left without a gradient.
        return (rows == qkv.size()[0]).then(|| Documents {
            key_bounds: bounds.shallow_clone(),
            longest_keys: longest as i64,
            bounds,
            longest: longest as i64,
            rows,
            key_rows: None,
        });
    }
    let key_rows: Vec<i64> = segments
        .iter()
        .flat_map(|segment| segment.before.iter().chain([&segment.rows]))
        .flat_map(|rows| rows.clone().map(|row| row as i64))
        .collect();
    Some(Documents {
        key_bounds: sums(&mut segments.iter().map(|segment| segment.keys())),
        longest_keys: segments.iter().map(|segment| segment.keys()).max()? as i64,
        bounds,
        longest: longest as i64,
        rows,
        key_rows: Some(staged(&key_rows, Kind::Int64, device)),
    })
}

/// Whether rows begin at multiples of 16 bytes.
fn is_aligned(rows: &Tensor) -> bool {
    (rows.data_ptr() as usize).is_multiple_of(16) && rows.stride()[0] % 8 == 0
}

/// Keys before its own that a query sees; none when all.
fn behind(shape: AttentionShape) -> Option<i64> {
    shape.window.map(|window| window as i64 - 1)
}

/// Output `[T, heads, head_dim]` and log-sums `[heads, T]`.
fn forward(
    heads: &Heads,
    documents: &Documents,
    shape: AttentionShape,
) -> Result<(Tensor, Tensor), String> {
    let (mut out, mut log_sums) = (null_mut(), null_mut());
    // SAFETY: live tensors of ours; the function writes the two addresses, and answers text or null.
    let text = unsafe {
        finetuned_flash_attention(
            heads.query.as_ptr(),
            heads.key.as_ptr(),
            heads.value.as_ptr(),
            documents.bounds.as_ptr(),
            documents.key_bounds.as_ptr(),
            documents.longest,
            documents.longest_keys,
            shape.scale,
            behind(shape).unwrap_or(-1),
            &mut out,
            &mut log_sums,
        )
    };
    if text.is_null() {
        // SAFETY: both are new tensors that belong to nobody else.
        return Ok(unsafe { (Tensor::from_ptr(out), Tensor::from_ptr(log_sums)) });
    }
    // SAFETY: text that ends with a zero byte, given to us.
    let words = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: the same text, which nobody sees again.
    unsafe { finetuned_free_text(text) };
    Err(words.lines().next().unwrap_or_default().to_owned())
}

fn keep(results: (Tensor, Tensor), shape: AttentionShape, out: &Tensor, log_sums: &Tensor) {
    heads(out, 0, shape.heads, shape).copy_(&results.0);
    log_sums.shallow_clone().copy_(&results.1.tr());
}

/// Rows that several documents see get the sum of their gradients, in f32 and rounded once.
fn keep_gradients(
    (d_query, d_key, d_value): (Tensor, Tensor, Tensor),
    documents: &Documents,
    shape: AttentionShape,
    d_qkv: &Tensor,
) {
    let (h, k) = (shape.heads, shape.kv_heads);
    heads(&d_qkv.narrow(0, 0, documents.rows), 0, h, shape).copy_(&d_query);
    let Some(key_rows) = &documents.key_rows else {
        heads(d_qkv, h, k, shape).copy_(&d_key);
        return heads(d_qkv, h + k, k, shape).copy_(&d_value);
    };
    let mut seen = keys_and_values(d_qkv, shape);
    let mut sums = Tensor::zeros(seen.size(), (Kind::Float, d_qkv.device()));
    let parts = Tensor::cat(&[d_key, d_value].map(|part| part.flatten(1, 2)), 1);
    let _ = sums.index_add_(0, key_rows, &parts.to_kind(Kind::Float));
    seen.copy_(&sums);
    // What stands behind the queries has none.
    let behind = d_qkv.size()[0] - documents.rows;
    let queries = (h * shape.head_dim) as i64;
    let _ = d_qkv.narrow(0, documents.rows, behind).narrow(1, 0, queries).zero_();
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::reference;

    const SHAPE: AttentionShape = AttentionShape {
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        scale: 0.3,
        window: None,
        softcap: None,
    };
    const DOCUMENTS: [i32; 4] = [0, 1, 20, 57];

    fn random(rows: i64, columns: i64) -> Tensor {
        // A part of wider rows, as everywhere in a pass.
        Tensor::randn([rows, columns + 8], (Kind::Float, Device::Cpu)).narrow(1, 8, columns)
    }

    fn assert_close(ours: &Tensor, expected: &Tensor) {
        let distance = ((ours - expected).norm() / expected.norm()).double_value(&[]);
        assert!(distance < 2e-6, "{distance:e}");
    }

    /// Which keys the queries of a document see, as what is added to scores.
    fn mask(queries: i64, keys: i64) -> Tensor {
        let all = Tensor::full([queries, keys], f64::NEG_INFINITY, (Kind::Float, Device::Cpu));
        all.triu(keys - queries + 1).nan_to_num(0.0, None, f64::NEG_INFINITY)
    }

    /// Libtorch's kernel for the CPU, document by document, in the place of the one for CUDA: what goes in and what
    /// comes out is arranged alike.
    fn assert_arranged(segments: &Segments, all_rows: i64) {
        let t = segments.rows() as i64;
        let (qkv, d_out) = (random(all_rows, SHAPE.width() as i64), random(t, 64));
        let (expected, d_expected) = (d_out.zeros_like(), qkv.zeros_like());
        let sums = Tensor::zeros([t, 4], (Kind::Float, Device::Cpu));
        reference::attention(&qkv, segments, SHAPE, &expected, &sums);
        reference::attention_backward(&d_out, &qkv, segments, SHAPE, &d_expected);

        let (out, d_qkv) = (random(t, 64), random(all_rows, 128));
        let log_sums = sums.zeros_like();
        let documents = bounds(&qkv, segments).unwrap();
        let Heads { query, key, value } = Heads::of(&qkv, &documents, SHAPE);
        let d_out = heads(&d_out, 0, 4, SHAPE);
        let (mut outs, mut all_sums, mut gradients) = (vec![], vec![], vec![]);
        let ends = |bounds: &Tensor| Vec::<i32>::try_from(bounds).unwrap();
        let (queries, keys) = (ends(&documents.bounds), ends(&documents.key_bounds));
        for (q, k) in queries.windows(2).zip(keys.windows(2)) {
            // `[1, heads, tokens, head_dim]`, keys and values as often as queries.
            let part = |x: &Tensor, pair: &[i32]| {
                let x = x.narrow(0, pair[0].into(), i64::from(pair[1] - pair[0])).transpose(0, 1);
                x.repeat_interleave_self_int(4 / x.size()[0], 0, None).unsqueeze(0)
            };
            let mask = mask((q[1] - q[0]).into(), (k[1] - k[0]).into());
            let (d, q) = (part(&d_out, q), part(&query, q));
            let (k, v) = (part(&key, k), part(&value, k));
            let (o, sums) = Tensor::internal_scaled_dot_product_flash_attention_for_cpu(
                &q,
                &k,
                &v,
                0.0,
                false,
                Some(&mask),
                SHAPE.scale,
            );
            let (dq, dk, dv) = Tensor::internal_scaled_dot_product_flash_attention_for_cpu_backward(
                &d,
                &q,
                &k,
                &v,
                &o,
                &sums,
                0.0,
                false,
                Some(&mask),
                SHAPE.scale,
            );
            let back = |x: Tensor| x.squeeze_dim(0).transpose(0, 1);
            let grouped = |x: Tensor| {
                let x = back(x).contiguous().view([-1, 2, 2, 16]);
                x.sum_dim_intlist([2i64].as_slice(), false, Kind::Float)
            };
            outs.push(back(o));
            all_sums.push(sums.squeeze_dim(0));
            gradients.push([back(dq), grouped(dk), grouped(dv)]);
        }
        keep((Tensor::cat(&outs, 0), Tensor::cat(&all_sums, 1)), SHAPE, &out, &log_sums);
        let [dq, dk, dv] = [0, 1, 2].map(|which| {
            let parts: Vec<&Tensor> = gradients.iter().map(|parts| &parts[which]).collect();
            Tensor::cat(&parts, 0)
        });
        keep_gradients((dq, dk, dv), &documents, SHAPE, &d_qkv);
        assert_close(&out, &expected);
        assert_close(&log_sums, &sums);
        assert_close(&d_qkv, &d_expected);
    }

    #[test]
    fn heads_go_in_and_results_come_out_where_they_belong() {
        assert_arranged(&Segments::documents(&DOCUMENTS), 57);
    }

    #[test]
    fn keys_that_documents_share_are_copied_and_their_gradients_added_up() {
        let segment = |rows, before| crate::Segment { rows, before };
        let (beginning, prefix) = (3..20, 40..45);
        let segments = Segments::new(vec![
            segment(0..3, vec![prefix.clone()]),
            segment(beginning.clone(), vec![prefix.clone()]),
            segment(20..31, vec![prefix.clone(), beginning.clone()]),
            segment(31..40, vec![prefix, beginning]),
        ]);
        assert_arranged(&segments, 45);
    }

    #[test]
    fn libtorch_is_called_and_says_why_it_cannot() {
        let qkv = random(57, SHAPE.width() as i64).to_kind(Kind::BFloat16);
        let segments = Segments::documents(&DOCUMENTS);
        let documents = bounds(&qkv, &segments).unwrap();
        assert_eq!(Vec::<i32>::try_from(&documents.bounds).unwrap(), DOCUMENTS);
        assert_eq!(documents.longest, 37);
        let heads = Heads::of(&qkv, &documents, SHAPE);
        let reason = forward(&heads, &documents, SHAPE).unwrap_err();
        assert!(reason.contains("aten::_flash_attention_forward"), "{reason}");
        assert!(reason.contains("CPU"), "{reason}");
    }

    #[test]
    fn what_it_cannot_compute_is_left_to_others() {
        let qkv = Tensor::zeros([3, 128], (Kind::BFloat16, Device::Cpu));
        assert!(bounds(&qkv, &Segments::documents(&[0, 1, 2, 3])).is_none());
        assert!(bounds(&qkv, &Segments::documents(&[0, 2])).is_none());
        assert!(bounds(&qkv, &Segments::documents(&[0, 2, 3])).is_some());
        // It is a CPU tensor.
        assert!(documents(&qkv, &Segments::documents(&[0, 3]), SHAPE).is_none());
        assert!(is_aligned(&qkv) && !is_aligned(&qkv.narrow(1, 1, 64)));
        let windowed = AttentionShape { window: Some(5), ..SHAPE };
        assert_eq!((behind(SHAPE), behind(windowed)), (None, Some(4)));
    }
}
