"""Our adapter in peft: trains a few steps on the real model, then lets our engine and transformers + peft answer
the same held-out prompts greedily. Every token must be the same. Prints a table and, last, one JSON line. With
`FINETUNED_TUNING=full` every weight is trained, and transformers loads the folder that comes out; with `prompt` or
`prefix` virtual tokens are.

    cargo xtask bench adapter [--rows 48] [--prompts 6]
"""

import json
import os
import pathlib
import sys
import tempfile

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import engine
import train

DATA = train.ROOT / "tests/data"
NEW_TOKENS = 40


def train_adapter(options, rows, model, folder):
    """Trains, and answers with the folder of the final checkpoint."""
    train.run_ours(options, rows, model, folder)
    name = "model.safetensors" if options.tuning == "full" else "adapter_config.json"
    return max(folder.glob(f"ours-*/*/{name}"), key=os.path.getmtime).parent


def our_answers(options, model, adapter, prompts):
    sampling = {
        "temperature": 0.0, "top_p": 1.0, "seed": None, "max_tokens": NEW_TOKENS, "stop": [],
        "frequency_penalty": 0.0, "presence_penalty": 0.0, "n": 1,
    }
    with engine.Engine(model, options.threads) as ours:
        for number, messages in enumerate(prompts):
            request = {
                "id": str(number), "adapter": str(adapter), "messages": messages, "tools": [],
                "sampling": sampling,
            }
            ours.send({"command": "generate", "request": request})
        texts, open_answers = [""] * len(prompts), len(prompts)
        for reply in ours.replies():
            if reply["reply"] != "generation":
                continue
            event = reply["event"]
            if event["event"] == "delta":
                texts[int(reply["id"])] += event["text"]
            if event["event"] == "failed":
                sys.exit(f"our engine: {event['failure']['message']}")
            if event["event"] == "done":
                open_answers -= 1
                if open_answers == 0:
                    return texts


def their_answers(options, model, adapter, prompts):
    if options.tuning == "full":
        # As a user would: the folder alone, in the type that its configuration says.
        tokenizer = AutoTokenizer.from_pretrained(adapter)
        tuned = AutoModelForCausalLM.from_pretrained(adapter).eval()
        assert tuned.dtype == torch.float32, tuned.dtype
    else:
        tokenizer = AutoTokenizer.from_pretrained(model)
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        tuned = PeftModel.from_pretrained(base, adapter).eval()
    texts = []
    for messages in prompts:
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            output = tuned.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        new = output[0, inputs["input_ids"].shape[1]:]
        texts.append(tokenizer.decode(new, skip_special_tokens=True))
    return texts


def main():
    options = train.arguments()
    options.tuning = os.environ.get("FINETUNED_TUNING", "lora")
    if options.tuning in ("prompt", "prefix"):
        options.learning_rate, options.virtual_tokens = 0.02, {"count": 20}
    with tempfile.TemporaryDirectory(prefix="finetuned-adapter-") as name:
        folder = pathlib.Path(name)
        rows, model = train.prepare(options, folder)
        adapter = train_adapter(options, rows, model, folder)
        held_out = (DATA / "address_test.jsonl").read_text(encoding="utf-8").splitlines()[:6]
        prompts = [json.loads(line)["messages"][:-1] for line in held_out]
        prompts.append([{"role": "user", "content": "What is the capital of France?"}])
        ours = our_answers(options, model, adapter, prompts)
        theirs = their_answers(options, model, adapter, prompts)
    equal = [a == b for a, b in zip(ours, theirs)]
    for a, b, same in zip(ours, theirs, equal):
        print("same     " if same else "DIFFERENT", repr(a) if same else f"{a!r} / {b!r}")
    print(json.dumps({"bench": "adapter", "prompts": len(equal), "equal": sum(equal)}))
    sys.exit(0 if all(equal) else 1)


if __name__ == "__main__":
    main()
