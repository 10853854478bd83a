//! 4-bit weights against bitsandbytes' CPU rule, bit by bit. Fixtures: `tests/golden/nf4_fixture.py`.

use std::path::Path;

use weights::TensorFile;
use weights::nf4::{absmax_levels, quantise};

fn fixture() -> TensorFile {
    let path = "tests/fixtures/nf4/nf4.safetensors";
    TensorFile::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn codes_absmax_and_the_way_back_have_the_same_bits() {
    let golden = fixture();
    for name in ["single", "half", "short"] {
        let floats = |what: &str| golden.get_f32(&format!("{name}.{what}")).unwrap();
        let bytes = |what: &str| golden.get(&format!("{name}.{what}")).unwrap().data;
        let offset = floats("offset")[0];
        let ours = quantise(&floats("weight"), |_| offset);
        assert_eq!(ours.codes, bytes("codes"), "{name}");
        assert_eq!(ours.absmax, bytes("absmax"), "{name}");
        assert_eq!(bits(&ours.nested_absmax), bits(&floats("nested_absmax")), "{name}");
        let dequantised = ours.dequantise();
        if name == "half" {
            // The fixture's is rounded to the type of the weight.
            let rounded = dequantised.iter().map(|value| {
                let bits = value.to_bits();
                f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
            });
            assert_eq!(bits(&rounded.collect::<Vec<_>>()), bits(&floats("dequantised")));
        } else {
            assert_eq!(bits(&dequantised), bits(&floats("dequantised")), "{name}");
        }
    }
}

#[test]
fn the_map_of_absmax_codes_has_the_same_bits() {
    assert_eq!(bits(absmax_levels()), bits(&fixture().get_f32("map").unwrap()));
}

#[test]
fn nothing_and_zeros_are_weights_too() {
    let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len().max(1) as f32;
    assert!(quantise(&[], mean).dequantise().is_empty());
    assert_eq!(quantise(&[0.0; 130], mean).dequantise(), [0.0; 130]);
}
