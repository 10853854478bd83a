//! The sources of the CUDA kernels, compiled for the CPU (`cuda/emulator.h`) and run with the very launches that a
//! GPU gets, against the plain-tch references: odd widths, documents of one token, strided rows, both element
//! types. Every case runs with its threads in three orders and must give the same bits.

#[path = "emulated/elementwise.rs"]
mod elementwise;
#[path = "emulated/emulator.rs"]
mod emulator;
#[path = "emulated/images.rs"]
mod images;
#[path = "emulated/sequences.rs"]
mod sequences;
