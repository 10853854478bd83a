"""Makes the sets that are not taken over as they are: `companies` and `reviews`.

Reads the source packages of two projects, in the versions below, from a folder:

    pip download --no-deps --no-binary :all: -d FOLDER probablepeople==0.5.6 vaderSentiment==3.3.2
    python3 tests/data/prepare.py FOLDER
"""

import io
import json
import pathlib
import random
import sys
import tarfile
import xml.etree.ElementTree as ElementTree

HERE = pathlib.Path(__file__).parent
COMPANIES = ("probablepeople-0.5.6.tar.gz", "probablepeople-0.5.6/name_data/labeled/company_labeled.xml")
REVIEWS = (
    "vaderSentiment-3.3.2.tar.gz",
    "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
    "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt",
)
COMPANY_ROWS, REVIEW_ROWS = (292, 60), (512, 100)
SYSTEM = "Split the name of the company. Reply with one JSON object and nothing else."
INSTRUCTION = "Classify the sentence from a product review. Answer with one word: positive or negative."
# Parts of a company's name as users would name them; rows with other parts are left out.
PARTS = {
    "CorporationName": "name",
    "CorporationNameOrganization": "kind",
    "CorporationLegalType": "legal_form",
}
# A sentence without a clear opinion is no example; ratings go from -4 to 4.
CLEAR = 1.0
MOST_CHARACTERS = 200


def member(archive, name):
    return archive.extractfile(name).read()


def companies(folder):
    with tarfile.open(folder / COMPANIES[0]) as archive:
        names = ElementTree.fromstring(member(archive, COMPANIES[1]))
    rows = {}
    for name in names:
        if not all(part.tag in PARTS and part.text for part in name):
            continue
        parts = {}
        for part in name:
            parts.setdefault(PARTS[part.tag], []).append(part.text.strip())
        if "name" not in parts or len(parts) < 2:
            continue
        text = " ".join(part.text.strip() for part in name)
        # The comma before a legal form belongs to neither.
        answer = {key: " ".join(words).rstrip(",") for key, words in parts.items()}
        rows[text.lower()] = {
            "system": SYSTEM,
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": text}]},
                {"role": "assistant", "content": [{"type": "text", "text": json.dumps(answer, ensure_ascii=False)}]},
            ],
        }
    return list(rows.values())


def reviews(folder):
    with tarfile.open(folder / REVIEWS[0]) as outer:
        with tarfile.open(fileobj=io.BytesIO(member(outer, REVIEWS[1]))) as archive:
            lines = member(archive, REVIEWS[2]).decode("latin-1").splitlines()
    by_label, seen = {"positive": [], "negative": []}, set()
    for line in lines:
        _, mean, text = line.split("\t", 2)
        text = text.strip()
        if abs(float(mean)) < CLEAR or len(text) > MOST_CHARACTERS or not text.isascii() or text in seen:
            continue
        seen.add(text)
        label = "positive" if float(mean) > 0 else "negative"
        by_label[label].append({"instruction": INSTRUCTION, "input": text, "output": label})
    # As many of each, so that always giving the same answer is right half of the time.
    each = sum(REVIEW_ROWS) // 2
    for rows in by_label.values():
        random.Random(1).shuffle(rows)
    return [row for pair in zip(by_label["positive"][:each], by_label["negative"][:each]) for row in pair]


def write(name, rows, counts):
    train, test = counts
    assert len(rows) >= train + test, f"{name}: {len(rows)} rows"
    for split, part in (("train", rows[:train]), ("test", rows[train : train + test])):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (HERE / f"{name}_{split}.jsonl").write_text(text, encoding="utf-8")


def main():
    folder = pathlib.Path(sys.argv[1])
    rows = companies(folder)
    random.Random(1).shuffle(rows)
    print(len(rows), "companies")
    write("companies", rows, COMPANY_ROWS)
    rows = reviews(folder)
    print(len(rows), "reviews")
    write("reviews", rows, REVIEW_ROWS)


if __name__ == "__main__":
    main()
