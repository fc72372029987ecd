"""What is asked: scores in closed form, classes by name."""

from __future__ import annotations

import math

import pytest
import torch

from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.explain.question import Case, Question, build_question

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]])
CLASSES = ("Ant", "bee", "honey bee")


def test_the_score_of_a_softmax_is_its_logit_over_the_others():
    score = Case(torch.tensor([0, 2])).score(LOGITS.softmax(dim=1))
    others = torch.stack([LOGITS[0, [1, 2]].logsumexp(0), LOGITS[1, [0, 1]].logsumexp(0)])
    torch.testing.assert_close(score, torch.tensor([2.0, 1.0]) - others)


def test_the_score_against_one_class_is_the_difference_of_two_logits():
    score = Case(torch.tensor([0, 2]), torch.tensor([1, 0])).score(LOGITS.softmax(dim=1))
    torch.testing.assert_close(score, torch.tensor([3.0, 1.0]))


def test_the_slope_stays_where_the_model_is_sure():
    logits = torch.tensor([[60.0, 0.0, 0.0]], requires_grad=True)
    Case(torch.tensor([0])).score(logits.softmax(dim=1)).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[1.0, -0.5, -0.5]]), atol=1e-4, rtol=0)


def test_a_model_of_one_class_has_a_finite_score():
    assert Case(torch.tensor([0])).score(torch.ones(1, 1)).item() == 0


def test_the_answer_is_asked_about_unless_a_class_is_named():
    probs = LOGITS.softmax(dim=1)
    assert Question().ask(probs).targets.tolist() == [0, 1]
    assert Question(target=2).ask(probs).targets.tolist() == [2, 2]
    # Against what is itself the answer, it is the next class that is explained.
    case = Question(against=1).ask(probs)
    assert case.targets.tolist() == [0, 2] and case.rivals.tolist() == [1, 1]


def test_a_case_about_several_versions_of_each_image():
    case = Case(torch.tensor([0, 2]), torch.tensor([1, 0])).repeated(2)
    assert case.targets.tolist() == [0, 0, 2, 2] and case.rivals.tolist() == [1, 1, 0, 0]


def test_classes_are_found_whatever_their_case():
    assert build_question(CLASSES, "ant", "Honey Bee") == Question(0, 2)
    assert build_question(CLASSES, None, None) == Question()


@pytest.mark.parametrize(
    ("target", "shown"),
    [("antt", "Nearest: Ant"), ("honey", "honey bee"), ("zzz", "It knows Ant"), ("", "It")],
)
def test_an_unknown_class_shows_the_nearest(target, shown):
    with pytest.raises(FgvcError, match=shown) as caught:
        build_question(CLASSES, target, None)
    assert caught.value.exit_code == EXIT_USAGE and "--target" in str(caught.value)


def test_of_several_labels_the_score_is_the_log_odds_of_the_own_yes():
    probs = torch.tensor([[0.8, 0.5, 0.9]])
    alone = Case(torch.tensor([0]), multi_label=True).score(probs)
    assert alone.item() == pytest.approx(math.log(4), rel=1e-5)
    contrast = Case(torch.tensor([2]), torch.tensor([0]), multi_label=True)
    assert contrast.score(probs).item() == pytest.approx(math.log(9) - math.log(4), rel=1e-5)
    assert contrast.repeated(2).multi_label
