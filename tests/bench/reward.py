"""Our reward model in peft: trains one on the real model, then lets our engine, and transformers + peft from the folder that
it left, score the same held-out answers. Scores must be equal but for rounding. Prints a table and, last, one JSON line.

    cargo xtask bench reward [--rows 32]
"""

import json
import os
import pathlib
import sys
import tempfile

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import engine
import train

DATA = train.ROOT / "tests/data"
# Of the largest score; both compute in fp32, in other orders.
ALLOWED = 1e-4


def pairs(lines):
    """Each row's answer, preferred to that of the row before."""
    chats = [json.loads(line)["messages"] for line in lines]
    return [(chat[:-1], chat[-1:], chats[n - 1][-1:]) for n, chat in enumerate(chats)]


def train_adapter(options, model, folder):
    """The folder of the final checkpoint, and the share of pairs that the last step judged rightly."""
    rows, output = folder / "pairs.jsonl", folder / "ours"
    output.mkdir()
    row = lambda pair: json.dumps(
        {"input": {"messages": pair[0]}, "preferred_output": pair[1], "non_preferred_output": pair[2]}
    )
    rows.write_text("".join(row(pair) + "\n" for pair in pairs(train.read_rows(options))), encoding="utf-8")
    plan = engine.plan(
        rows, output, batch_size=options.batch_size, learning_rate=options.learning_rate, seed=options.seed,
        max_seq_len=options.max_seq_len, lora=engine.lora(options.rank),
        preference={"loss_type": "reward", "beta": 0.1, "label_smoothing": 0.0, "gamma": 0.0,
                    "desirable_weight": 1.0, "undesirable_weight": 1.0, "center_coefficient": 0.01},
    )
    steps = engine.measure(model, options.threads, plan | {"method": "dpo"})["steps"]
    adapter = max(output.glob("*/adapter_config.json"), key=os.path.getmtime).parent
    return adapter, steps[-1]["train_reward_accuracy"]


def our_scores(options, model, adapter, conversations):
    sampling = {"temperature": 1.0, "top_p": 1.0, "seed": None, "max_tokens": None, "stop": [],
                "frequency_penalty": 0.0, "presence_penalty": 0.0, "n": 1}
    scores = {}
    with engine.Engine(model, options.threads) as ours:
        for number, messages in enumerate(conversations):
            request = {"id": str(number), "adapter": str(adapter), "messages": messages, "tools": [],
                       "sampling": sampling, "score": True}
            ours.send({"command": "generate", "request": request})
        for reply in ours.replies():
            if reply["reply"] != "generation":
                continue
            event = reply["event"]
            if event["event"] == "failed":
                sys.exit(f"our engine: {event['failure']['message']}")
            if event["event"] == "scored":
                scores[int(reply["id"])] = event["score"]
                if len(scores) == len(conversations):
                    return [scores[number] for number in range(len(conversations))]


def their_scores(model, adapter, conversations):
    tokenizer = AutoTokenizer.from_pretrained(model)
    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
    # One by one there is no padding.
    base.config.pad_token_id = None
    judge = PeftModel.from_pretrained(base, adapter).eval()
    scores = []
    for messages in conversations:
        inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            scores.append(judge(**inputs).logits.item())
    return scores


def main():
    options = train.arguments()
    with tempfile.TemporaryDirectory(prefix="finetuned-reward-") as name:
        folder = pathlib.Path(name)
        model = train.model_folder(options, folder)
        adapter, accuracy = train_adapter(options, model, folder)
        held_out = (DATA / "address_test.jsonl").read_text(encoding="utf-8").splitlines()[:8]
        conversations = [begin + answer for begin, *answers in pairs(held_out) for answer in answers]
        ours = our_scores(options, model, adapter, conversations)
        theirs = their_scores(model, adapter, conversations)
    apart = max(abs(a - b) for a, b in zip(ours, theirs)) / max(map(abs, theirs))
    for a, b in zip(ours, theirs):
        print(f"{a:10.5f}{b:10.5f}")
    won = sum(good > bad for good, bad in zip(ours[::2], ours[1::2]))
    print(f"at most {apart:.1e} of the largest score apart; {won} of {len(ours) // 2} held-out pairs judged rightly")
    print(json.dumps({"bench": "reward", "scores": len(ours), "apart": apart, "train_accuracy": accuracy,
                      "held_out_won": won, "held_out": len(ours) // 2}))
    sys.exit(0 if apart <= ALLOWED else 1)


if __name__ == "__main__":
    main()
