import pytest

from helpers.text.markdown import Section, sections


def read(text):
    return [(section.line, section.heading, section.text) for section in sections(text.split("\n"), "page")]


def test_a_section_stands_under_all_its_headings():
    page = "Before all.\n\n# Kettle #\n\nIt boils.\n\n## Care\n\n### Lid\nWipe.\n## Price\n59 euros.\n# Next\nx"
    assert read(page) == [
        (1, "page", "Before all."),
        (3, "Kettle", "It boils."),
        (9, "Kettle: Care: Lid", "Wipe."),
        (11, "Kettle: Price", "59 euros."),
        (13, "Next", "x"),
    ]
    assert list(sections(["## Lid\r\n", "Wipe.\r\n", "Dry.\n"], "page")) == [Section(1, ("page", "Lid"), "Wipe.\nDry.")]


@pytest.mark.parametrize(
    ("fenced", "inside"),
    [
        ("```\n# no\n```\n# yes\nx", "```\n# no\n```"),
        ("~~~ python\n# no\n```\n# no\n~~~\n# yes\nx", "~~~ python\n# no\n```\n# no\n~~~"),
        ("````\n```\n# no\n```\n````\n# yes\nx", "````\n```\n# no\n```\n````"),
        ("```\n# no\n``` no end\n# no\n```\n# yes\nx", "```\n# no\n``` no end\n# no\n```"),
        ("``` `in a line` ```\n# yes\nx", "``` `in a line` ```"),
    ],
)
def test_what_stands_in_a_fence_is_no_heading(fenced, inside):
    assert [(heading, text) for _, heading, text in read(fenced)] == [("page", inside), ("yes", "x")]


def test_a_fence_that_nothing_closes_goes_on_to_the_end():
    assert read("# a\n```\n# b\nx") == [(1, "a", "```\n# b\nx")]


def test_front_matter_is_no_text_and_may_name_the_page():
    assert read("---\ntitle: 'Our shop'\ntags: [a]\n---\nText.\n## Hours\nx") == [
        (1, "Our shop", "Text."),
        (6, "Our shop: Hours", "x"),
    ]
    assert read("---\nA rule, then text.\n---\n# a\nx")[0] == (1, "page", "---\nA rule, then text.\n---")
    assert read("---\nkey: never closed") == [(1, "page", "---\nkey: never closed")]
    assert read("#hashtag\n####### seven\n#\nx") == [(1, "page", "#hashtag\n####### seven"), (3, "page", "x")]
