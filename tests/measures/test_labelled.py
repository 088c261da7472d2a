from sklearn.metrics import cohen_kappa_score

from helpers.machine.paths import DATA
from helpers.measures.labelled import read_labelled


def test_the_judge_agrees_with_a_reader():
    """On answers labelled by reading; what the two see differently is shown by lesson 7."""
    labelled = read_labelled(DATA / "judged.jsonl")
    assert len(labelled) >= 60 and (labelled["source"] == "model").sum() >= 60
    assert labelled["label"].value_counts().min() >= 8
    kappa = {
        "label": cohen_kappa_score(labelled["label"], labelled["judged"]),
        "right": cohen_kappa_score(labelled["label"] == "right", labelled["judged"] == "right"),
        "hallucinated": cohen_kappa_score(labelled["hallucinated"], labelled["judged hallucinated"]),
    }
    print("Cohen's kappa:", kappa)
    assert kappa["label"] >= 0.75 and kappa["right"] >= 0.9 and kappa["hallucinated"] >= 0.7, kappa
