"""Labelled: answers that a person labelled by reading, with what the judge says of them."""

from pathlib import Path

import pandas as pd

from helpers.data import Example
from helpers.evaluation import judge
from helpers.text.judging import REFUSALS


def read_labelled(path: str | Path) -> pd.DataFrame:
    """Read answers that were labelled by reading, and judge them too: a row each, with `label` beside `judged`.

    label: right, wrong, declined or empty.  hallucinated: by the reader; `judged hallucinated`: by the judge.
    """
    table = pd.read_json(path, lines=True, dtype=False)
    parts = []
    for refusal, part in table.groupby(table["refusal"].fillna(""), sort=False):
        examples = [
            Example(row.question, row.reference, row.id, row.kind, tuple(row.facts), tuple(row.values_))
            for row in part.rename(columns={"values": "values_"}).itertuples()
        ]
        judged = judge(examples, part["answer"].tolist(), [refusal] if refusal else REFUSALS).set_index(part.index)
        named = judged["refused"].map({True: "declined", False: "wrong"}).mask(judged["empty"], "empty")
        named = named.mask(judged["correct"] & judged["answerable"], "right")
        parts.append(part.assign(**{"judged": named, "judged hallucinated": judged["hallucinated"]}))
    return pd.concat(parts).sort_index()
