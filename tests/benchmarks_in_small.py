"""The official files of the paper's data sets in small, with invented rows."""

import json

NUM = {"train": 24, "dev": 4}
OTHER_DOMAINS = ("BioASQ", "DROP", "DuoRC.ParaphraseRC", "RACE", "RelationExtraction", "TextbookQA")
WORDS, WHO = ("warm", "dull"), ("Ann", "Bob")  # of an even row, and of an odd one


def superglue(n):
    """By the name of its folder, the n-th record of each task; every second one has the other label."""
    odd, word = n % 2 == 1, WORDS[n % 2]
    text = f"day {n} was {word} by the sea"
    stance = ("contradiction", "entailment", "neutral")[n % 3]
    names = f"Ann met Bob on day {n}"
    return {
        "BoolQ": {"question": f"was day {n} warm", "passage": text, "label": odd},
        "CB": {"premise": text, "hypothesis": "it was warm", "label": stance},
        "COPA": {"premise": text, "choice1": "sun", "choice2": "rain", "question": "cause", "label": n % 2},
        "MultiRC": {
            "passage": {
                "text": text,
                "questions": [
                    {
                        "question": "how was it?",
                        "idx": 0,
                        "answers": [{"text": other, "idx": i, "label": i == n % 2} for i, other in enumerate(WORDS)],
                    }
                ],
            }
        },
        "ReCoRD": {
            "passage": {"text": names, "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 10}]},
            "qas": [{"query": "@placeholder was there", "idx": n, "answers": [{"text": "Bob" if odd else "Ann"}]}],
        },
        "RTE": {"premise": text, "hypothesis": "it was warm", "label": "entailment" if odd else "not_entailment"},
        "WiC": {"word": "day", "sentence1": text, "sentence2": f"a day of {n}", "label": odd},
        "WSC": {
            "text": f"Ann met Bob on day {n // 2} and he left",
            "target": {"span1_text": WHO[n % 2], "span1_index": 2 * (n % 2), "span2_text": "he", "span2_index": 7},
            "label": odd,
        },
    }  # fmt: skip


def write_all(folder):
    """Write all of them into the folder, the texts of a dev set other than those of the training file."""
    first = {"train": 0, "dev": 1000}
    for split, count in NUM.items():
        numbers = range(first[split], first[split] + count)
        for n in numbers:
            for name, record in superglue(n).items():
                _append(
                    folder / "superglue" / name / f"{'val' if split == 'dev' else split}.jsonl", record | {"idx": n}
                )
        pairs = [(f"day {n} was warm", f"it was {WORDS[n % 2]} on day {n}", n % 2, n) for n in numbers]
        _table(folder / f"glue/SST-2/{split}.tsv", "sentence\tlabel", [(b, label) for _, b, label, _ in pairs])
        head = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
        _table(folder / f"glue/MRPC/{split}.tsv", head, [(label, n, n, a, b) for a, b, label, n in pairs])
        head = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
        _table(folder / f"glue/QQP/{split}.tsv", head, [(n, n, n, a, b, label) for a, b, label, n in pairs])
        labelled = [(n, a, b, ("not_entailment", "entailment")[label]) for a, b, label, n in pairs]
        _table(folder / f"glue/RTE/{split}.tsv", "index\tsentence1\tsentence2\tlabel", labelled)
        paragraphs = [
            {
                "context": a,
                "qas": [{"id": f"{n}", "question": "how?", "answers": [{"text": "warm", "answer_start": 0}]}],
            }
            for a, _, _, n in pairs
        ]
        article = {"title": "Days", "paragraphs": paragraphs}
        _append(folder / "squad" / f"{split}-v1.1.json", {"version": "1.1", "data": [article]})
    for name in OTHER_DOMAINS:
        for n in range(NUM["dev"]):
            asked = [{"qid": f"{name}{n}", "question": "who?", "answers": ["Ann"]}]
            _append(folder / "mrqa" / name / "dev.jsonl", {"context": f"Ann of {name} {n}", "qas": asked})


def _append(path, record):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def _table(path, head, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([head, *("\t".join(map(str, row)) for row in rows)]) + "\n")
