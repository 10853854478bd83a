"""The cases: a set of real rows each, in the format in which it is uploaded, and how a model is trained on it.

Formats and ways to judge answers are the server's; nothing here knows them.
"""

import dataclasses
import json
import pathlib

DATA = pathlib.Path(__file__).parent.parent / "data"


@dataclasses.dataclass(frozen=True)
class Case:
    """What is done with one set of rows."""

    name: str
    # What the rows are, for people.
    what: str
    # As the server tells them.
    format: str
    task: str
    hyperparameters: dict
    learning_rate: float
    method: str = "supervised"
    held_out: int = 50

    def training(self):
        return read_rows(f"{self.name}_train")

    def test(self):
        return read_rows(f"{self.name}_test")[: self.held_out]

    def request(self, model, training_file, validation_file, **hyperparameters):
        """The body of the job's creation: OpenAI's, with ours beyond its hyperparameters in `finetuned`."""
        return {
            "model": model,
            "training_file": training_file,
            "validation_file": validation_file,
            "suffix": self.name,
            "seed": 1,
            "method": {
                "type": self.method,
                self.method: {"hyperparameters": self.hyperparameters | hyperparameters},
            },
            "finetuned": {"learning_rate": self.learning_rate, "lora": {"rank": 16, "alpha": 32}},
        }


def read_rows(name):
    with open(DATA / f"{name}.jsonl", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


CASES = {
    case.name: case
    for case in (
        Case(
            name="sentiment",
            what="sentences from film reviews and their labels, in OpenAI's format",
            format="chat",
            task="classification",
            hyperparameters={"n_epochs": 1, "batch_size": 8},
            learning_rate=5e-4,
        ),
        Case(
            name="address",
            what="US addresses and their parts as JSON, in OpenAI's format",
            format="chat",
            task="extraction",
            hyperparameters={"n_epochs": 3, "batch_size": 8},
            learning_rate=1e-3,
            held_out=30,
        ),
        Case(
            name="companies",
            what="names of companies and their parts as JSON, in Anthropic's format",
            format="anthropic",
            task="extraction",
            hyperparameters={"n_epochs": 3, "batch_size": 8},
            learning_rate=1e-3,
        ),
        Case(
            name="reviews",
            what="sentences from product reviews and their labels, as Alpaca's instructions",
            format="alpaca",
            task="classification",
            hyperparameters={"n_epochs": 1, "batch_size": 8},
            learning_rate=5e-4,
        ),
        Case(
            name="opinions",
            what="pairs of sentences about films, of which the favourable one is preferred, in OpenAI's format",
            format="preference",
            task="text",
            method="dpo",
            hyperparameters={"n_epochs": 1, "batch_size": 8, "beta": 0.1},
            learning_rate=1e-4,
            held_out=60,
        ),
    )
}
