"""What several tests of detectors share: a small network, the three ports, and suppression as it is defined."""

from ascl.features.detectors.network import CAFFE, DETECTRON2, HUGGING_FACE, DetectorShape

SMALL = DetectorShape(
    blocks=(1, 2, 2, 2), width=4, rpn_channels=8, anchor_scales=(1, 2), classes=9, attributes=5, class_embedding=4,
    attribute_hidden=8, pool_size=3, proposals_before_nms=60, proposals=20,
)
CONVENTIONS = {"caffe": CAFFE, "detectron2": DETECTRON2, "huggingface": HUGGING_FACE}


def overlap(a, b, legacy=False) -> float:
    one = 1 if legacy else 0
    width = max(min(a[2], b[2]) - max(a[0], b[0]) + one, 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]) + one, 0)
    areas = [(box[2] - box[0] + one) * (box[3] - box[1] + one) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def greedy(boxes, scores, threshold, legacy) -> list[int]:
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(overlap(boxes[index], boxes[other], legacy) <= threshold for other in kept):
            kept.append(index)
    return kept
