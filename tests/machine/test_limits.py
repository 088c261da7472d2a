import pytest

from helpers.machine.limits import check_count, check_knobs, check_rank, check_seed, rising_loss


@pytest.mark.parametrize("losses", [[2.0, 3.0, 5.0], [3.0, 2.9, 3.1, 4, 5, 5, 6, 7], [2.0] * 6 + [9.0] * 6])
def test_a_loss_that_rises_is_told(losses):
    assert "Lower the learning rate" in rising_loss(losses) and f"to {losses[-1]:.2f}" in rising_loss(losses)


@pytest.mark.parametrize(
    "losses", [[], [1.0], [1.0, 2.0], [3.0, 3.5, 2.0], [3.0, 2.5, 2.8, 2.4, 2.6, 2.2, 2.5, 2.1], [2.0] * 12]
)
def test_other_losses_pass(losses):
    assert rising_loss(losses) == ""


def test_seeds_that_nothing_takes_are_refused():
    for seed in (0, 1, 2**63 - 1):
        check_seed(seed)
    for seed in (-1, 2**63, 10**30, 1.5):
        with pytest.raises(ValueError, match=f"The seed is {seed}"):
            check_seed(seed)


def test_fewer_than_none_cannot_be_drawn():
    check_count(0, "e-mails")
    with pytest.raises(ValueError, match="e-mails: -3 cannot be drawn"):
        check_count(-3, "e-mails")
    for odd in (2.5, "3", None):
        with pytest.raises(ValueError, match=rf"e-mails: {odd!r} cannot be drawn\. Ask for a whole number"):
            check_count(odd, "e-mails")


@pytest.mark.parametrize("odd", [0, -1, 2.5, "3", None])
def test_a_lessons_knobs_are_told_by_their_names(odd):
    check_knobs({"a": 1, "b": 2, "other": "text"}, "a b")
    with pytest.raises(ValueError, match=rf"The knob b is {odd!r}\. It has to be a whole number, 1 or more"):
        check_knobs({"a": 1, "b": odd}, "a b")
    with pytest.raises(ValueError, match=r"The knob a is 1\. It has to be a whole number, 2 or more"):
        check_knobs({"a": 1}, "a", least=2)


@pytest.mark.parametrize("odd", [-0.5, "30", None, float("nan"), float("inf")])
def test_knobs_of_money_may_have_a_point_but_no_other_letters(odd):
    check_knobs({"wage": 30.5, "hour": 0}, "wage hour", least=0, whole=False)
    with pytest.raises(ValueError, match=rf"The knob wage is {odd!r}\. It has to be a number, 0 or more"):
        check_knobs({"wage": odd}, "wage", least=0, whole=False)


def test_ranks_above_the_layers_size_are_refused():
    check_rank(64, "q_proj", 64)
    for rank in (0, 65):
        with pytest.raises(ValueError, match=f"The rank is {rank}, and the layer q_proj takes one from 1 to 64"):
            check_rank(rank, "q_proj", 64)
