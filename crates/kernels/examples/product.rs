//! Times the products of a layer with its adapter, ours against libtorch's, on two threads:
//! `cargo run --release --workspace --example product -- [tokens] [hidden] [intermediate] [rank]`.

use std::time::Instant;

use kernels::{Term, Write, product};
use tch::{Device, Kind, Tensor};

/// With a line between rows of round lengths, as the decoder's buffers have it.
fn random(rows: i64, columns: i64) -> Tensor {
    let pad = if columns % 512 == 0 { 16 } else { 0 };
    Tensor::randn([rows, columns + pad], (Kind::Float, Device::Cpu)).narrow(1, 0, columns)
}

/// The best of a dozen, in seconds.
fn seconds(work: &dyn Fn()) -> f64 {
    let times = (0..12).map(|_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    });
    times.fold(f64::MAX, f64::min)
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: i64| -> i64 {
        arguments.get(index).map_or(default, |text| text.parse().expect("a number"))
    };
    let (t, d, f, r) = (number(0, 867), number(1, 576), number(2, 1536), number(3, 16));
    tch::set_num_threads(2);
    kernels::set_threads(2);
    for (name, inner, outer) in [("d to d", d, d), ("d to 2f", d, 2 * f), ("f to d", f, d)] {
        let (x, w, y) = (random(t, inner), random(outer, inner), random(t, outer));
        let (s, b, a) = (random(t, r), random(outer, r), random(r, inner));
        let [wt, bt, st] = [&w, &b, &s].map(Tensor::tr);
        let line = |what: &str, flops: i64, ours: &dyn Fn(), libtorch: &dyn Fn()| {
            let rates = [ours, libtorch].map(|work| 2e-9 * (t * flops) as f64 / seconds(work));
            println!("{name:8} {what:22} {:7.1} {:7.1} GFLOP/s", rates[0], rates[1]);
        };
        line(
            "y = x·Wᵀ + s·Bᵀ",
            outer * (inner + r),
            &|| product(&[Term::new(&x, &wt), Term::new(&s, &bt)], 1.0, Write::Over, &y),
            &|| drop(x.mm_out(&y, &wt).addmm_(&s, &bt)),
        );
        line(
            "dx = dy·W + ds·A",
            inner * (outer + r),
            &|| product(&[Term::new(&y, &w), Term::new(&s, &a)], 1.0, Write::Over, &x),
            &|| drop(y.mm_out(&x, &w).addmm_(&s, &a)),
        );
        line(
            "dA = dsᵀ·x",
            inner * r,
            &|| product(&[Term::new(&st, &x)], 1.0, Write::Over, &a),
            &|| drop(st.mm_out(&a, &x)),
        );
    }
}
