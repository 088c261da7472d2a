from helpers.data import Example, read
from helpers.evaluation import evaluate
from helpers.machine.paths import DATA
from helpers.text.messages import Message


def test_the_general_model_knows_little_of_the_company(embedded):
    table = evaluate(*embedded, read(DATA / "evaluation/dev/facts.jsonl")[::60], max_new_tokens=24)
    assert len(table) == 12 and table["correct"].mean() < 0.2 and table["words"].min() > 0


def test_a_conversation_is_asked_whole(monkeypatch):
    talk = Example("How much?", "59 euros.", history=(Message("user", "A kettle?"), Message("assistant", "Yes.")))
    monkeypatch.setattr(
        "helpers.evaluation.generate", lambda model, tokenizer, asked, *rest, **more: [str(a[-3:]) for a in asked]
    )
    table = evaluate(None, None, [talk])
    assert table["answer"][0] == str(talk.asked) and len(talk.asked) == 3 and table["question"][0] == "How much?"
