//! The embedded machine code, and what ptxas said when it was made.

use kernels::cuda::images;

use crate::emulator::kernels;

const MAKE: &str = "`cargo xtask setup` compiles the kernels; then build again";

/// What one kernel takes of the device.
struct Resources {
    stack: u32,
    spills: u32,
    registers: u32,
}

fn resources(report: &str, kernel: &str) -> Option<Resources> {
    let mut lines = report.lines().skip_while(|line| {
        !line.contains(&format!("Compiling entry function '{kernel}' for 'sm_90'"))
    });
    lines.next()?;
    let number_before = |text: &str, unit: &str| -> Option<u32> {
        text.split(unit).next()?.split_whitespace().last()?.parse().ok()
    };
    let frame = lines.by_ref().find(|line| line.contains("bytes stack frame"))?;
    let used = lines.find(|line| line.contains("Used "))?;
    Some(Resources {
        stack: number_before(frame, " bytes stack frame")?,
        spills: number_before(frame, " bytes spill stores")?
            + number_before(frame, " bytes spill loads")?,
        registers: number_before(used, " registers")?,
    })
}

#[test]
fn every_kernel_is_compiled_without_spills_and_embedded() {
    assert!(!images::SM_90.is_empty() && !images::PTX.is_empty(), "{MAKE}");
    assert_eq!(&images::SM_90[..4], b"\x7fELF");
    let text = std::str::from_utf8(images::PTX).unwrap();
    assert!(text.contains(".target sm_80"));
    let report = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.deps/kernels/ptxas.txt");
    let report = std::fs::read_to_string(report).expect(MAKE);
    let names = kernels();
    assert!(names.len() > 40, "{names:?}");
    for name in names {
        assert!(text.contains(&format!(".entry {name}(")), "{name} is not in the PTX");
        let found = resources(&report, &name).unwrap_or_else(|| panic!("{name}: not compiled"));
        assert_eq!((found.stack, found.spills), (0, 0), "{name}: stack bytes, spilled bytes");
        // Two blocks of 256 threads share 65,536 registers; the one kernel of 512 threads takes few.
        assert!(found.registers <= 128, "{name}: {} registers", found.registers);
    }
}
