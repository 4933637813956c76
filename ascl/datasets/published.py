"""The published files of COCO, Flickr30K and Flickr8K: addresses, checksums, counts, and forms to fill in."""

from __future__ import annotations

from dataclasses import dataclass

from ascl.data.text_files import CAPTION_ARCHIVE
from ascl.datasets.download import RemoteFile


@dataclass(frozen=True)
class ImageArchive:
    """An archive of images."""

    file: RemoteFile  # the zip
    id_prefix: str  # how the ids of its images begin


@dataclass(frozen=True)
class ByHand:
    """Images that the publisher gives only on request."""

    page: str  # address of the page about them
    form: str  # address of the form to fill in
    archives: tuple[str, ...]  # possible names of the file that one receives
    unpacked: str  # name of the folder in it


@dataclass(frozen=True)
class Published:
    """A published data set."""

    captions: RemoteFile  # zip of Karpathy's split files
    caption_file: str  # its member for this data set
    counts: dict[str, tuple[int, int]]  # split -> (images, captions)
    images: tuple[ImageArchive, ...] = ()  # archives that anybody may download
    annotations: RemoteFile | None = None  # the publisher's own captions, without Karpathy's splits
    by_hand: ByHand | None = None  # set if the images must be requested


# Sizes and checksums: tensorflow/datasets on GitHub, tensorflow_datasets/url_checksums/coco_captions.txt. COCO's server
# has no certificate for its own name, hence http; downloads are checked against the sha256.
_KARPATHY = RemoteFile(f"https://cs.stanford.edu/people/karpathy/deepimagesent/{CAPTION_ARCHIVE}", 36_745_453,
                       "4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817")
_COCO_TRAIN = RemoteFile("http://images.cocodataset.org/zips/train2014.zip", 13_510_573_713,
                         "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775")
_COCO_VAL = RemoteFile("http://images.cocodataset.org/zips/val2014.zip", 6_645_013_297,
                       "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0")
_COCO_ANNOTATIONS = RemoteFile("http://images.cocodataset.org/annotations/annotations_trainval2014.zip", 252_872_794,
                               "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009")

# Counts: Karpathy's split files; COCO's `restval` belongs to train. Forms: the links of the publishers' pages, as in
# many public repositories (for Flickr30K: mertyg/vision-language-models-are-bows).
PUBLISHED = {
    "coco": Published(
        _KARPATHY, "dataset_coco.json",
        counts={"train": (113_287, 566_747), "val": (5_000, 25_010), "test": (5_000, 25_010)},
        images=(ImageArchive(_COCO_TRAIN, "COCO_train2014_"), ImageArchive(_COCO_VAL, "COCO_val2014_")),
        annotations=_COCO_ANNOTATIONS,
    ),
    "flickr30k": Published(
        _KARPATHY, "dataset_flickr30k.json",
        counts={"train": (29_000, 145_000), "val": (1_014, 5_070), "test": (1_000, 5_000)},
        by_hand=ByHand("https://shannon.cs.illinois.edu/DenotationGraph/", "https://forms.illinois.edu/sec/229675",
                       ("flickr30k-images.tar.gz", "flickr30k-images.tar"), unpacked="flickr30k-images"),
    ),
    "flickr8k": Published(
        _KARPATHY, "dataset_flickr8k.json",
        counts={"train": (6_000, 30_000), "val": (1_000, 5_000), "test": (1_000, 5_000)},
        by_hand=ByHand("https://hockenmaier.cs.illinois.edu/8k-pictures.html",
                       "https://forms.illinois.edu/sec/1713398", ("Flickr8k_Dataset.zip",), "Flicker8k_Dataset"),
    ),
}
