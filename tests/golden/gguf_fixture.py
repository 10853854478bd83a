"""Makes the golden files of the GGUF import tests (crates/weights/tests/fixtures).

    python tests/golden/gguf_fixture.py [SMOLLM2.gguf]

Needs: gguf 0.19, numpy, safetensors, regex; for SmolLM2 also transformers 5 and torch.

tiny.gguf               a one-layer llama model with every tensor type that we read
tiny.safetensors        its weights under Hugging Face names: dequantised by the gguf package,
                        rows of Q and K put in order by numpy
tiny_ids.json           texts and their ids, by a plain byte-pair encoding written here
smollm2.json            checksums of the real model's weights as transformers loads them from GGUF,
                        and ids of texts
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
import regex
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file

OUT = Path(__file__).resolve().parents[2] / "crates/weights/tests/fixtures"
VOCAB_MERGES = [
    "t h", "th e", "Ġ the", "i n", "in g", "e r", "Ġ a", "l l", "e ll", "h ell", "hell o",
    "1 2", "Ġ 1", "Ġ Ġ", "ĠĠ ĠĠ", "n 't", "Ã ¤",
]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER_DEFINED = "<tool>"
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n'"
    " + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
)
TEXTS = [
    "hello the thing, the other thinger",
    "12 1212 x12 1",
    "<|im_start|>user\nhello<|im_end|>\n",
    "a<tool>b <|endoftext|>",
    "isn't  it?    yes\n\n\tno \u00a0 end ",
    "ä über 日本 🎉 ½ ٣",
    "def f(x):\n    return x ** 2\n",
    "<|im_start",
    "",
]


def byte_alphabet():
    """GPT-2's printable stand-ins for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


class PlainBpe:
    """The textbook algorithm: split by llama.cpp's two expressions, merge the lowest rank."""

    WORDS = regex.compile(
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    )

    def __init__(self, tokens, merges, added):
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(merges)}
        self.added = set(added)
        longest_first = sorted(added, key=len, reverse=True)
        self.split = regex.compile("(" + "|".join(map(regex.escape, longest_first)) + ")")
        self.alphabet = byte_alphabet()

    def word(self, word):
        parts = [self.alphabet[b] for b in word.encode()]
        while len(parts) > 1:
            pairs = [(self.ranks.get(pair, 1 << 30), i)
                     for i, pair in enumerate(zip(parts, parts[1:]))]
            rank, i = min(pairs)
            if rank == 1 << 30:
                break
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        return [self.ids[part] for part in parts]

    def encode(self, text):
        ids = []
        for piece in self.split.split(text):
            if piece in self.added:
                ids.append(self.ids[piece])
                continue
            for run in regex.split(r"(\p{N})", piece):
                for word in self.WORDS.findall(run):
                    ids += self.word(word)
        return ids


def tiny_tokens():
    tokens = SPECIALS + list(byte_alphabet().values())
    for merge in VOCAB_MERGES:
        left, right = merge.split(" ")
        for token in (left, right, left + right):
            if token not in tokens:
                tokens.append(token)
    tokens.append(USER_DEFINED)
    kinds = [3] * len(SPECIALS) + [1] * (len(tokens) - len(SPECIALS) - 1) + [4]
    return tokens, kinds


def tiny_tensors(vocabulary):
    """Name, Hugging Face name, stored type, shape, heads (for Q and K)."""
    hidden, feed, heads, kv_heads, head = 32, 32, 2, 1, 16
    layer = "model.layers.0."
    query, key = (heads * head, hidden), (kv_heads * head, hidden)
    attention = layer + "self_attn."
    return [
        ("token_embd.weight", "model.embed_tokens.weight", Type.Q8_0, (vocabulary, hidden), 0),
        ("output_norm.weight", "model.norm.weight", Type.F32, (hidden,), 0),
        ("blk.0.attn_norm.weight", layer + "input_layernorm.weight", Type.F32, (hidden,), 0),
        ("blk.0.ffn_norm.weight", layer + "post_attention_layernorm.weight", Type.F32, (hidden,),
         0),
        ("blk.0.attn_q.weight", attention + "q_proj.weight", Type.Q4_1, query, heads),
        ("blk.0.attn_k.weight", attention + "k_proj.weight", Type.Q4_0, key, kv_heads),
        ("blk.0.attn_v.weight", attention + "v_proj.weight", Type.F16, key, 0),
        ("blk.0.attn_output.weight", attention + "o_proj.weight", Type.BF16, query[::-1], 0),
        ("blk.0.ffn_gate.weight", layer + "mlp.gate_proj.weight", Type.Q4_0, (feed, hidden), 0),
        ("blk.0.ffn_up.weight", layer + "mlp.up_proj.weight", Type.Q4_1, (feed, hidden), 0),
        ("blk.0.ffn_down.weight", layer + "mlp.down_proj.weight", Type.F32, (hidden, feed), 0),
    ]


def with_extreme_scales(stored, kind):
    """Scales at the ends of half precision: subnormal, largest, negative, both zeros."""
    blocks = stored.reshape(-1, gguf.GGML_QUANT_SIZES[kind][1])
    extremes = np.array([0x0001, 0x03FF, 0x7BFF, 0xFBFF, 0x8000, 0x0000, 0x8001], np.uint16)
    for i, scale in enumerate(extremes[: len(blocks)]):
        blocks[i, :2] = np.array([scale]).view(np.uint8)
    return stored


def make_tiny():
    tokens, kinds = tiny_tokens()
    writer = gguf.GGUFWriter(OUT / "tiny.gguf", "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(VOCAB_MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(7)
    expected = {}
    for name, hf_name, kind, shape, heads in tiny_tensors(len(tokens)):
        values = random.normal(0, 0.5, shape).astype(np.float32)
        stored = gguf.quantize(values, kind)
        if kind in (Type.Q4_0, Type.Q4_1, Type.Q8_0):
            stored = with_extreme_scales(stored, kind)
        if kind == Type.F16:
            halves = np.array([0x0001, 0x03FF, 0x0400, 0x7BFF, 0x7C00, 0xFC00, 0x8000], np.uint16)
            stored.reshape(-1)[: len(halves)] = halves.view(np.float16)
        raw_shape = stored.shape if stored.dtype == np.uint8 else None
        writer.add_tensor(name, stored, raw_shape=raw_shape, raw_dtype=kind)
        result = gguf.dequantize(stored, kind).reshape(shape)
        if heads:
            pairs = result.reshape(heads, shape[0] // heads // 2, 2, shape[1])
            result = pairs.swapaxes(1, 2).reshape(shape)
        expected[hf_name] = np.ascontiguousarray(result)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected, OUT / "tiny.safetensors")
    bpe = PlainBpe(tokens, VOCAB_MERGES, [*SPECIALS, USER_DEFINED])
    write_json("tiny_ids.json", [[text, bpe.encode(text)] for text in TEXTS])


def make_smollm2(path):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    checksums = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        bits = tensor.contiguous().numpy().reshape(-1).view(np.uint32).astype(np.uint64)
        places = 2 * np.arange(len(bits), dtype=np.uint64) + 1
        checksums[name] = str(int((bits * places).sum(dtype=np.uint64)))
    fields = gguf.GGUFReader(path).fields
    read = lambda key: fields["tokenizer.ggml." + key].contents()
    tokens = read("tokens")
    added = [token for token, kind in zip(tokens, read("token_type")) if kind == 3]
    bpe = PlainBpe(tokens, read("merges"), added)
    ids = [[text, bpe.encode(text)] for text in TEXTS]
    write_json("smollm2.json", {"checksums": checksums, "ids": ids})


def write_json(name, value):
    (OUT / name).write_text(json.dumps(value, ensure_ascii=False, indent=0) + "\n")


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    make_tiny()
    if len(sys.argv) > 1:
        make_smollm2(Path(sys.argv[1]))
