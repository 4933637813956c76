"""Groups of images from judged pairs, against what each linkage promises."""

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from ascl.image_copy.matching.linkage import linked_by

EDGES = st.dictionaries(st.tuples(st.integers(0, 7), st.integers(0, 7)).filter(lambda pair: pair[0] != pair[1]),
                        st.floats(0, 1), max_size=14)


@settings(max_examples=200, deadline=None)
@given(EDGES)
def test_groups_share_no_image_and_hold_what_their_linkage_says(edges):
    linked = {frozenset(edge) for edge in edges}
    for linkage in ("star", "single", "complete"):
        found = linked_by(linkage, 8, edges)
        members = [one for group in found for one in group]
        assert len(members) == len(set(members)) and all(len(group) > 1 for group in found)
        for group in found:
            if linkage == "star":
                assert all((copy, group[0]) in edges for copy in group[1:])
            elif linkage == "complete":
                assert all(frozenset(pair) in linked for pair in combinations(group, 2))
            else:       # naive: grow from the first until nothing more can be reached
                reached, before = {group[0]}, set()
                while reached != before:
                    before, reached = reached, reached | {one for pair in linked if pair & reached for one in pair}
                assert reached == set(group)
        if linkage == "single":
            assert set(members) == {one for edge in edges for one in edge}
        if linkage == "star":       # nothing that is left is a copy of something else that is left
            assert not any(set(edge).isdisjoint(members) for edge in edges)


def test_a_star_has_the_image_with_the_most_copies_first():
    chain = {(1, 0): 0.5, (2, 1): 0.9, (3, 1): 0.7}     # (copy, original): 1 is a copy of 0, 2 and 3 are copies of 1
    assert linked_by("star", 5, chain) == [[1, 2, 3]]
    assert linked_by("single", 5, chain) == [[1, 2, 3, 0]]
    assert linked_by("complete", 5, chain) == [[1, 2]]
    assert linked_by("star", 3, {}) == []
