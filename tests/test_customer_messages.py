import json
import math
import re
from collections import Counter, defaultdict
from itertools import combinations, pairwise
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples" / "customer_messages"
INTENTS = {"refund", "delivery", "billing", "login", "cancel", "technical", "praise", "sales question"}


def read(split: str) -> list[dict[str, str]]:
    lines = (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def words(message: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", message.lower())


def overlap(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b)


@pytest.fixture(scope="module")
def train() -> list[dict[str, str]]:
    return read("train")


@pytest.fixture(scope="module")
def dev() -> list[dict[str, str]]:
    return read("dev")


@pytest.fixture(scope="module")
def messages(train, dev) -> list[str]:
    return [row["message"] for row in train + dev]


def test_every_intent_has_60_rows_to_train_on_and_15_to_choose_by(train, dev):
    assert Counter(row["intent"] for row in train) == dict.fromkeys(INTENTS, 60)
    assert Counter(row["intent"] for row in dev) == dict.fromkeys(INTENTS, 15)


def test_a_row_is_a_message_and_its_intent_as_text(train, dev):
    for row in train + dev:
        assert list(row) == ["message", "intent"]
        assert row["message"] == " ".join(row["message"].split())
        assert row["message"].isascii()


def test_rows_are_not_sorted_by_intent(train, dev):
    for rows in (train, dev):
        changes = sum(a["intent"] != b["intent"] for a, b in pairwise(rows))
        assert changes > 0.8 * len(rows)


def test_messages_have_4_to_60_words_and_vary(messages):
    lengths = sorted(len(message.split()) for message in messages)
    assert lengths[0] >= 4
    assert lengths[-1] <= 60
    assert lengths[60] <= 12  # a tenth is terse
    assert lengths[540] >= 25  # and a tenth is chatty


def test_no_message_stands_twice(messages):
    assert len({" ".join(words(message)) for message in messages}) == 600


def test_no_two_messages_share_more_than_two_fifths_of_their_words(messages):
    alike = [
        (a, b)
        for (a, x), (b, y) in combinations([(message, set(words(message))) for message in messages], 2)
        if overlap(x, y) > 0.4
    ]
    assert alike == []


def test_no_dev_message_shares_six_words_in_a_row_with_a_train_message(train, dev):
    def runs(rows: list[dict[str, str]]) -> set[tuple[str, ...]]:
        return {
            tuple(found[i : i + 6]) for found in (words(row["message"]) for row in rows) for i in range(len(found) - 5)
        }

    assert runs(train) & runs(dev) == set()


def test_no_five_words_in_a_row_recur_in_more_than_two_messages(messages):
    holders = Counter(
        run for found in map(words, messages) for run in {tuple(found[i : i + 5]) for i in range(len(found) - 4)}
    )
    assert [run for run, count in holders.items() if count > 2] == []


def test_no_four_word_opening_serves_more_than_three_messages(messages):
    openings = Counter(tuple(words(message)[:4]) for message in messages)
    assert max(openings.values()) <= 3


def test_no_mail_address_link_or_phone_number_is_in_a_message(messages):
    found = [m for m in messages if re.search(r"@|https?:|www\.|\+\d|(?<![\d.])\d[\d ()/-]{8,}\d", m)]
    assert found == []


def test_the_words_of_the_label_give_away_less_than_a_fifth(train, dev):
    rows = train + dev
    told = [row for row in rows if any(word in row["message"].lower() for word in row["intent"].split())]
    assert len(told) < 0.2 * len(rows)


def test_a_label_stands_in_at_least_20_messages_of_another_intent(train, dev):
    misleading = [
        row for row in train + dev if any(other in row["message"].lower() for other in INTENTS - {row["intent"]})
    ]
    assert len(misleading) >= 20


def test_counting_words_gets_48_of_120_right_as_the_card_says(train, dev):
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in train:
        counts[row["intent"]].update(set(words(row["message"])))
    num_words = len(set().union(*counts.values()))

    def likelihood(intent: str, message: str) -> float:
        total = counts[intent].total() + num_words
        return sum(math.log((counts[intent][word] + 1) / total) for word in sorted(set(words(message))))

    right = sum(
        max(sorted(counts), key=lambda intent: likelihood(intent, row["message"])) == row["intent"] for row in dev
    )
    assert right == 48
    assert "gets 0.40 of dev right" in (FOLDER / "README.md").read_text(encoding="utf-8")
