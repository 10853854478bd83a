"""Training speed and memory over a base model in 4 bits: `train.py` with NF4 on both sides, ours against
transformers, peft and bitsandbytes on the CPU. Same weights to the last bit, so the same losses.

    cargo xtask bench qlora [--rows 64] [any option of bench train]
"""

import sys

import train

if __name__ == "__main__":
    train.main(["--quantization", "nf4", "--rows", "64", *sys.argv[1:]])
