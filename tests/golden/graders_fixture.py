"""Golden values of the graders' text metrics: what rapidfuzz, sacrebleu, nltk and rouge-score say of pairs of texts.

pip install --target FOLDER sacrebleu==2.6.0 rouge-score==0.1.2 nltk==3.10.0 rapidfuzz==3.14.6
PYTHONPATH=FOLDER python3 tests/golden/graders_fixture.py
Writes crates/graders/tests/fixtures/similarity.json, corpus.json and stems.json; needs nothing else.

Choices that a name leaves open: BLEU is sacrebleu's sentence BLEU with its defaults; GLEU and METEOR split words as it
does (tokenizer 13a); METEOR knows no synonyms, for want of WordNet; ROUGE is the F-measure without stemming.
"""

import importlib.metadata
import json
import pathlib
import random
import sys

from nltk.stem.porter import PorterStemmer
from nltk.translate.gleu_score import sentence_gleu
from nltk.translate.meteor_score import single_meteor_score
from rapidfuzz import fuzz
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

VERSIONS = {"sacrebleu": "2.6.0", "rouge-score": "0.1.2", "nltk": "3.10.0", "rapidfuzz": "3.14.6"}
OUT = pathlib.Path(__file__).parents[2] / "crates/graders/tests/fixtures"
BLEU_OF_SENTENCES = BLEU(effective_order=True)
ROUGE = RougeScorer([f"rouge{n}" for n in range(1, 6)] + ["rougeL"], use_stemmer=False)
SPLIT = Tokenizer13a()


class NoSynonyms:
    """In the place of WordNet."""

    @staticmethod
    def synsets(_word):
        return []


def scores(text, reference):
    words, wanted = SPLIT(text.rstrip()).split(), SPLIT(reference.rstrip()).split()
    rouge = ROUGE.score(reference, text)
    return {
        "fuzzy_match": fuzz.ratio(text, reference) / 100,
        "bleu": BLEU_OF_SENTENCES.sentence_score(text, [reference]).score / 100,
        "gleu": sentence_gleu([wanted], words),
        "meteor": single_meteor_score(wanted, words, wordnet=NoSynonyms),
        **{f"rouge_{n}": rouge[f"rouge{n}"].fmeasure for n in range(1, 6)},
        "rouge_l": rouge["rougeL"].fmeasure,
    }


def long_text(seed, words):
    draw = random.Random(seed)
    known = "the a model trains on rows of text and learns to answer questions, quickly. It's 3.14 or 1,000 - done!"
    return " ".join(draw.choice(known.split()) for _ in range(words))


PAIRS = [
    ("", ""),
    ("", "something"),
    ("something", ""),
    ("   ", "\n\t"),
    ("the same text", "the same text"),
    ("Paris", "Paris"),
    ("Paris", "London"),
    ("paris", "Paris"),
    ("a b", "b a"),
    ("The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log."),
    (
        "It is a guide to action which ensures that the military always obeys the commands of the party",
        "It is a guide to action that ensures that the military will forever heed Party commands",
    ),
    ("the cat sat on the mat", "on the mat sat the cat"),
    ("the the the the", "the cat the mat"),
    ("running runners ran easily", "he runs; the runner ran with ease"),
    ("The flies died. Skies, dying, happily enjoying!", "A fly dies in the sky and enjoys happiness"),
    ("generalizations are organizational", "generalize the organization relationally"),
    ("Hello, world!", "hello world"),
    ("It costs $1,000.50 - or 3.5%; (maybe) [no] {yes}", "It cost 1000.50 dollars or 3.5 %, maybe"),
    ("a.b,c 1.2,3 4-5 x-y ..,, ...", "a . b , c 1.2,3 4 - 5 x-y"),
    ("&quot;quoted&quot; &amp;lt; &lt;tag&gt; <skipped>here", "\"quoted\" <tag> here"),
    ("line one\nline two-\nbroken", "line one line twobroken"),
    ("na\u00efve caf\u00e9 \u00dcber stra\u00dfe", "naive cafe uber strasse"),
    ("\u6771\u4eac\u306f\u65e5\u672c\u306e\u9996\u90fd\u3067\u3059", "\u65e5\u672c\u306e\u9996\u90fd\u306f\u6771\u4eac\u3067\u3059"),
    ("\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!", "\u043f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440"),
    ("\U0001f600\U0001f44d\U0001f3fd ok \U0001f680", "\U0001f600 ok \U0001f680\U0001f680"),
    ("\u039f\u03b4\u03cc\u03c2 \u03a3\u03a3", "\u03bf\u03b4\u03cc\u03c2 \u03c3\u03c2"),
    ("\u0130stanbul I\u0307", "istanbul i"),
    ("one\u00a0two\u2003three\u001cfour\u0085five", "one two three four five"),
    ("e\u0301 combining", "\u00e9 combining"),
    ("x" * 200, "x" * 199 + "y"),
    ("ab" * 100, "ba" * 100),
    ("word", "word " * 50),
    ("one two three four five six seven", "one two three four five six seven eight"),
    ("1 2 3 4 5", "5 4 3 2 1"),
    ("A.B.C. U.S.A. e.g. 1.a a.1", "A B C USA eg 1 a"),
    (long_text(1, 300), long_text(2, 280)),
    (long_text(3, 200), long_text(3, 200) + " " + long_text(4, 40)),
]

WORDS = """
caresses flies dies mules denied died agreed owned humbled sized meeting stating siezing itemization sensational
traditional reference colonizer plotted sky skies dying lying tying news innings inning outing cannings howe proceed
exceed succeed happy enjoy enjoyment spy fly try spied tried toy syzygy yyyy yes by ivy trees oats troubles private
orrery feed bled sing plastered motoring conflated troubled hopping tanned falling hissing fizzed failing filing
relational conditional rational valenci hesitanci digitizer conformabli radicalli differentli vileli analogousli
vietnamization predication operator feudalism decisiveness hopefulness callousness formaliti sensitiviti sensibiliti
triplicate formative formalize electriciti electrical hopeful goodness revival allowance inference airliner gyroscopic
adjustable defensible irritant replacement adjustment dependent adoption homologou communism activate angulariti
homologous effective bowdlerize probate rate cease controll roll geology geologi theologi archaeologi fullfulli
carefulli generally naturalli realli finalli alli balli ied ies ss s as is ing ed eed need seed speed bee ion onion
opinion at bl iz ated able tables stables enable sses classes abli possibli ousli ally
""".split()



def corpora():
    """Pairs that are scored together; among them ones that are too short for runs of four words."""
    return [PAIRS, PAIRS[:6], PAIRS[4:9], PAIRS[9:20], PAIRS[20:], [("", "a b")], [PAIRS[9]], [PAIRS[12], PAIRS[15]]]


def main():
    for package, wanted in VERSIONS.items():
        found = importlib.metadata.version(package)
        if found != wanted:
            sys.exit(f"{package} {found} is installed; these fixtures need {wanted}")
    OUT.mkdir(parents=True, exist_ok=True)
    cases = [{"input": a, "reference": b, "scores": scores(a, b)} for a, b in PAIRS]
    (OUT / "similarity.json").write_text(json.dumps(cases, indent=1) + "\n")
    together = []
    for pairs in corpora():
        answers, references = [a for a, _ in pairs], [[b for _, b in pairs]]
        bleu = BLEU().corpus_score(answers, references).score
        together.append({"pairs": pairs, "bleu": bleu, "chrf": CHRF().corpus_score(answers, references).score})
    (OUT / "corpus.json").write_text(json.dumps(together, indent=1) + "\n")
    stemmer = PorterStemmer()
    (OUT / "stems.json").write_text(json.dumps({word: stemmer.stem(word) for word in WORDS}, indent=1) + "\n")


if __name__ == "__main__":
    main()
