"""ECCV Caption and CxC: what is handed to their authors' package, and its metrics against our own counting."""

import json

import numpy as np
import pytest
import torch

from ascl.analysis.labels import best_candidates, coco_ids, corrected_labels, may_be_coco_test, published_labels
from ascl.core.errors import DataError
from ascl.data.captions import CaptionSet, load_captions
from ascl.retrieval import ranks
from ascl.retrieval.multi_positive import multi_positive_report

KNOWN = ("coco_gts", "cxc_gts", "eccv_gts")


def package():
    pytest.importorskip("eccv_caption", reason="needs the package eccv_caption (the extra `labels`)")
    return published_labels()


@pytest.fixture(scope="module")
def small():
    """(function that makes the package with its own labels of 80 of its images and their captions, those ids)."""
    whole = package()
    images = list(whole.eccv_gts["i2t"])[:80]
    captions = [number for image in images for number in whole.coco_gts["i2t"][image]]
    keep = {"i2t": (set(images), set(captions)), "t2i": (set(captions), set(images))}

    def reduced():
        made = type(whole)()
        for name in KNOWN:
            labels = getattr(whole, name)
            setattr(made, name, {way: {
                query: right for query in labels[way]
                if query in queries and (right := [n for n in labels[way][query] if n in others])
            } for way, (queries, others) in keep.items()})
        return made

    return reduced, images, captions


def truth_of(labels, way, images, captions):
    """(N, M) bool of one direction's labels, and which queries have an entry."""
    queries, others = (images, captions) if way == "i2t" else (captions, images)
    place = {number: i for i, number in enumerate(others)}
    truth = np.zeros((len(queries), len(others)), dtype=bool)
    for row, query in enumerate(queries):
        for number in labels[way].get(query, []):
            truth[row, place[number]] = True
    return truth


@pytest.mark.parametrize("ties", [False, True])
def test_metrics_are_those_of_our_own_counting(small, ties):
    reduced, images, captions = small
    known = reduced()
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(len(images), len(captions), generator=generator)
    scores = noise + 1.5 * torch.from_numpy(truth_of(known.eccv_gts, "i2t", images, captions))
    if ties:
        scores = (2 * scores).round()
    order = torch.randperm(len(captions), generator=generator)                  # columns in any order
    found = corrected_labels(scores[:, order], images, [captions[i] for i in order], labels=reduced())
    for name, labels in (("eccv", known.eccv_gts), ("cxc", known.cxc_gts)):
        metrics = found[name].to_dict()
        for way in ("i2t", "t2i"):
            matrix = (scores if way == "i2t" else scores.T).numpy()
            truth = truth_of(labels, way, images, captions)
            ours = multi_positive_report(matrix, truth).i2t
            assert metrics[way]["map_at_r"] == pytest.approx(ours.map_at_r)
            assert metrics[way]["r_precision"] == pytest.approx(ours.r_precision)
            best = np.where(truth, matrix, -np.inf).max(axis=1)
            rank = ((matrix >= best[:, None]) & ~truth).sum(axis=1)[truth.any(axis=1)]
            for k in (1, 5, 10) if name == "cxc" else (1,):
                assert metrics[way][f"r{k}"] == pytest.approx(100 * np.mean(rank < k))
    assert "mAP@R" in found["cxc"].to_markdown() and "R@5" not in found["eccv"].to_markdown()


def test_a_constant_score_finds_nothing(small):
    reduced, images, captions = small
    zeros = np.zeros((len(images), len(captions)), np.float32)
    for report in corrected_labels(zeros, images, captions, labels=reduced()).values():
        assert max(value for way in report.to_dict().values() for value in way.values()) == 0


def test_recall_by_the_original_labels_agrees_with_the_ranking(small):
    """The lists that the package gets are the ranking: by COCO's own labels its recall is ours."""
    reduced, images, captions = small
    known = reduced()
    scores = torch.randn(len(images), len(captions), generator=torch.Generator().manual_seed(5))
    owner = [images.index(known.coco_gts["t2i"][number][0]) for number in captions]
    found = dict(best_candidates(scores.T, captions, images, known.coco_gts["t2i"]))
    recall = np.mean([known.coco_gts["t2i"][number][0] in found[number][:5] for number in captions])
    assert recall == np.mean(ranks(scores, np.array(owner)).t2i < 5)


def test_ids_of_karpathys_file(small):
    reduced, images, captions = small
    known = reduced()
    names = [f"COCO_val2014_{number:012d}" for number in images]
    owner = np.array([images.index(known.coco_gts["t2i"][number][0]) for number in captions])
    given = CaptionSet(names, ["a cat"] * len(captions), owner, "dataset_coco.json", captions)
    assert coco_ids(given, labels=known) == (images, captions)
    assert coco_ids(given.subset([3, 1]).limit_captions(2), labels=known)[0] == [images[3], images[1]]
    wrong = CaptionSet(names, given.captions, np.roll(owner, 1), "other.json", captions)
    with pytest.raises(DataError, match="other.json: caption .* its sentids are not COCO's"):
        coco_ids(wrong, labels=known)
    with pytest.raises(DataError, match="'img_a' has no COCO number"):
        coco_ids(CaptionSet(["img_a"], ["a cat"], np.array([0]), "x.json", [5]), labels=known)


def test_what_has_no_ids_is_told_where_they_are():
    package()
    with pytest.raises(DataError, match="does not say which captions.*dataset_coco.json"):
        coco_ids(CaptionSet(["0"], ["a cat"], np.array([0]), "test_caps.txt"))
    assert not may_be_coco_test(CaptionSet(["0"], ["a cat"], np.array([0]), "testall_caps.txt"))


def test_order_of_scans_text_files(shared):
    """The captions whose number COCO's files of 2017 tell have it at that place of the package's list."""
    folder = shared / "data" / "captions"
    captions = load_captions(folder / "coco_testall_caps.txt.gz", "coco_testall")
    package()
    image_ids, caption_ids = coco_ids(captions)
    assert may_be_coco_test(captions) and (len(image_ids), len(caption_ids)) == (5000, 25000)
    known = load_captions(folder / "dataset_coco_val2017.json.gz", "val2017")
    text = dict(zip(known.caption_ids, known.captions, strict=True))
    image = {number: known.image_ids[i] for number, i in zip(known.caption_ids, known.owner, strict=True)}
    both = [i for i, number in enumerate(caption_ids) if number in text]

    def letters(caption):
        return "".join(letter for letter in caption.lower() if letter.isalnum())

    assert len(both) == 2965
    for i in both:
        assert letters(text[caption_ids[i]]) == letters(captions.captions[i])
        assert int(image[caption_ids[i]]) == image_ids[captions.owner[i]]


def test_what_cannot_be_computed_is_refused(small):
    reduced, images, captions = small
    scores = np.zeros((len(images), len(captions)), np.float32)
    with pytest.raises(DataError, match="79 images were scored; 1 images of the labels are not among them"):
        corrected_labels(scores[1:], images[1:], captions, labels=reduced())
    with pytest.raises(DataError, match=r"\(80, 400\) for 80 image ids and 399"):
        corrected_labels(scores, images, captions[1:], labels=reduced())
    with pytest.raises(DataError, match="there twice"):
        corrected_labels(np.zeros((81, 400)), [*images, images[0]], captions, labels=reduced())
    scores[2, 3] = np.nan
    with pytest.raises(DataError, match="not finite"):
        corrected_labels(scores, images, captions, labels=reduced())


def test_without_the_package_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "eccv_caption", None)
    with pytest.raises(DataError, match="pip install eccv_caption"):
        corrected_labels(np.zeros((1, 1)), [1], [1])


def test_the_readers_keep_the_numbers_of_captions(tmp_path):
    karpathy = {"images": [
        {"filename": f"COCO_val2014_{image:012d}.jpg", "split": "test",
         "sentences": [{"raw": f"caption {number}", "sentid": number} for number in numbers]}
        for image, numbers in ((7, [30, 10, 20]), (9, [5]))
    ]}
    (tmp_path / "dataset_coco.json").write_text(json.dumps(karpathy), encoding="utf-8")
    captions = load_captions(tmp_path / "dataset_coco.json", "test")
    assert captions.caption_ids == [30, 10, 20, 5]
    assert captions.limit_captions(2).caption_ids == [30, 10, 5] and captions.subset([1]).caption_ids == [5]
    del karpathy["images"][1]["sentences"][0]["sentid"]
    (tmp_path / "dataset_coco.json").write_text(json.dumps(karpathy), encoding="utf-8")
    assert load_captions(tmp_path / "dataset_coco.json", "test").caption_ids is None
    coco = {"images": [{"id": 4, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
            "annotations": [{"id": n, "image_id": i, "caption": f"caption {n}"} for n, i in ((8, 2), (3, 4), (6, 2))]}
    (tmp_path / "captions_val2014.json").write_text(json.dumps(coco), encoding="utf-8")
    captions = load_captions(tmp_path / "captions_val2014.json", "val")
    assert captions.caption_ids == [3, 8, 6] and captions.captions == ["caption 3", "caption 8", "caption 6"]
    with pytest.raises(DataError, match="2 captions but 1 caption ids"):
        CaptionSet(["a"], ["x", "y"], np.array([0, 0]), "s", [1])
