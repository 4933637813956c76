"""Geometric verification of a pair of pictures: which part of one is which part of the other.

Local features of both are matched, and a homography is fitted to them that most of them agree on. It lays the reference
onto the query. Where the two then look alike, they are related; which of them lies within the other, and what surrounds
it, says who can be a copy of whom:

    query:      the edited picture, whose origin is asked for
    reference:  the picture that may be its origin

A query that shows more than the reference is not a copy of it, unless the rest is a border, or another picture onto
which the reference was pasted. Then there is a seam along the edge of the reference, or what they share fades there.

The purpose is that of D2LV's local verification (Wang et al., "D^2LV: A data-driven and local-verification approach for
image copy detection", 2021); the rules are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from ascl.image_copy.matching.local_features import LocalFeatures, opencv

Kind = Literal["same", "within", "border", "pasted", "source", "shows more", "partial", "unsure"]
COPIES = ("same", "within", "border", "pasted")

RATIO = 0.8             # of the distances to the nearest and the second nearest descriptor (Lowe 2004)
PIXELS = 4.0            # within which a match agrees with the homography
INLIERS = 6             # that agree, on distinct points
SURE = 15               # inliers from which the rules on what surrounds the reference are trusted
CELL = 3                # pixels; points in one cell count once
SCALES = (0.1, 10.0)    # plausible enlargement of the reference
STRETCH = 8.0           # plausible ratio of the enlargements along two directions
PERSPECTIVE = 6.0       # plausible ratio of the enlargements of two corners, in depth
WHOLE = 0.95            # share of a picture's area that counts as all of it

COMPARED = 192          # pixels of the query's longer side at which the two are compared
WINDOW = 9              # pixels of the square in which they are correlated
TEXTURE = 16.0          # variance of the gray values of a window that has something to compare
SAME, ALIKE = 0.8, 0.5  # correlation of windows that show the same; that show it with an edit
LEVELS = 4              # gray values around one that count as the same
LITTLE, DRAWN = 0.4, 0.35       # agreement, and flat share of what looks alike: perhaps only a template is shared
SPOT, DIFFERENT, UNLIKE = 5, 24.0, 0.3    # pixels of a spot, difference of gray values, correlation: what was changed
AGREEMENT = 0.3         # share of the windows that must be alike
BLUR = 8.0              # pixels; the largest blur of the reference before it is reduced
PLAIN, STEP = 0.9, 8    # a border has one color within STEP gray values on PLAIN of its area
RIM, PLAIN_RIM = (2.0, 5.0), 0.5    # pixels inside the reference's edge; share of them in the border's color
EDITED = 0.8            # agreement below which one of the two was changed inside: which one cannot be told
# What a paste shows at the edge of the reference and a scene that goes on does not, as (surely, perhaps). Chosen on 83
# reverse crops, 77 pastes with hard edges and 119 with feathered ones.
SEAMS = {3.0: (1.9, 1.4), 5.0: (1.75, 1.45), 8.0: (1.6, 1.6)}   # pixels from the edge: color step across, over inside
FADES = {(4.0, 8.0): (0.5, 0.6), (6.0, 10.0): (0.9, 0.96)}      # pixels from the edge: share of windows that are SAME
INNER, WHOLLY = 18.0, 0.95      # pixels inside the edge; share of the windows that are SAME, for a fade
APART = 0.35            # correlation of the colors along both sides of an edge that belong to different pictures
FILL = 6                # largest difference of a color from that of a rotation's corners, in L*a*b* of 0 to 255
FEWEST = 50             # pixels or windows from which a share is trusted


@dataclass(frozen=True)
class Relation:
    """How a query and a reference are related.

    Attributes:
        kind: "same": each shows all of the other. "within": the query is a part of the reference. "border": the query
            is the reference, or part of it, in a plain border. "pasted": the reference on another picture. "source":
            the reverse of these two, so that the reference was made of the query. "shows more": the query shows all of
            the reference and more of the same scene. "partial": each shows something that the other does not.
            "unsure": too little is known of what surrounds the reference, or only what was drawn over both is the same.
        inliers: matches on distinct points that agree.
        query_share: share of the query's area that is part of the reference, from 0 to 1.
        reference_share: share of the reference's area that is part of the query, from 0 to 1.
        agreement: share of the common area, where it has texture, that looks alike, from 0 to 1.
        changed: share of the common area that the largest spot covers where the two differ, after any change of the
            brightness that is the same everywhere: a sticker, a text, a thing that was removed; from 0 to 1.
        mirrored: whether the query is mirrored.
        corners: (4, 2), the reference's corners (left top, right top, right bottom, left bottom) in shares of the
            query's width and height; a mirrored query is turned back first.
    """

    kind: Kind
    inliers: int
    query_share: float
    reference_share: float
    agreement: float
    changed: float
    mirrored: bool
    corners: np.ndarray = field(compare=False)

    @property
    def copy(self) -> bool | None:
        """Whether the query is a copy of the reference; None if that is not known."""
        return True if self.kind in COPIES else False if self.kind == "shows more" else None

    @property
    def reversed(self) -> bool:
        """Whether it is rather the reference that is a copy of the query."""
        return self.kind in ("source", "shows more")

    def common(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the common part as a polygon (N, 2) in shares of the query's width and height, and in those of the
        reference's; N = 0 if there is none."""
        laid = opencv().getPerspectiveTransform(_corners((1, 1)).astype(np.float32), self.corners.astype(np.float32))
        shared = clipped(self.corners, (1, 1))
        other = _mapped(np.linalg.inv(laid), shared) if len(shared) else shared
        return np.column_stack([1 - shared[:, 0], shared[:, 1]]) if self.mirrored else shared, other.clip(0, 1)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**vars(self), "copy": self.copy, "corners": self.corners.round(4).tolist()}

    @classmethod
    def from_dict(cls, values: dict[str, Any] | None) -> Relation | None:
        """Return the relation whose `to_dict` this is."""
        return None if values is None else cls(**{name: values[name] for name in cls.__dataclass_fields__}
                                               | {"corners": np.array(values["corners"])})


class _Fit(NamedTuple):
    """A homography (3, 3) from the reference's pixels to the query's, and its inliers on distinct points."""

    query: LocalFeatures
    homography: np.ndarray
    inliers: int


def relate(query: LocalFeatures, reference: LocalFeatures) -> Relation | None:
    """Return how two pictures are related; None if no part of one is confirmed to be part of the other.

    The mirror image of the query is tried too, unless the query itself fits surely. It is deterministic.
    """
    fits = [fit] if (fit := _fit(query, reference)) else []
    if not fits or fits[0].inliers < SURE:
        mirrored = _fit(query.mirrored, reference)
        fits += [mirrored] if mirrored else []
    if not fits:
        return None
    best = max(fits, key=lambda fit: fit.inliers)
    compared = _Comparison(best, reference)
    if compared.agreement < AGREEMENT:
        return None
    kind = _kind(best, compared)
    if kind == "within":        # what surrounds the query in the reference may say that it was pasted there
        back = _Fit(reference, np.linalg.inv(best.homography), best.inliers)
        if plausible(back.homography, best.query.size) and _kind(back, _Comparison(back, best.query)) in COPIES:
            kind = "source"
    return Relation(kind, best.inliers, compared.query_share, compared.reference_share, compared.agreement,
                    compared.changed, best.query.flipped, compared.corners / best.query.size)


def matches(query: LocalFeatures, reference: LocalFeatures) -> np.ndarray:
    """Return (M, 2) numbers of points that match by their descriptors: the nearest, clearly nearer than the second.

    A point of either picture occurs once.
    """
    if len(query.points) < 4 or len(reference.points) < 4:
        return np.zeros((0, 2), dtype=np.int64)
    similarity = query.descriptors @ reference.descriptors.T
    rows = np.arange(len(similarity))
    nearest = similarity.argmax(axis=1)
    near = similarity[rows, nearest]
    similarity[rows, nearest] = -1.0
    near, second = (np.sqrt(np.maximum(2 - 2 * product, 0)) for product in (near, similarity.max(axis=1)))
    kept = np.flatnonzero(near < RATIO * second)
    kept = kept[np.argsort(near[kept], kind="stable")]          # of several for one reference point, the nearest
    _, first = np.unique(nearest[kept], return_index=True)
    kept = kept[first]
    return np.stack([kept, nearest[kept]], axis=1)


def _fit(query: LocalFeatures, reference: LocalFeatures) -> _Fit | None:
    """Fit a plausible homography; None if fewer than `INLIERS` agree."""
    cv2 = opencv()
    pairs = matches(query, reference)
    if len(pairs) < INLIERS:
        return None
    homography, mask = cv2.findHomography(reference.points[pairs[:, 1]], query.points[pairs[:, 0]], cv2.USAC_MAGSAC,
                                          PIXELS, maxIters=2000, confidence=0.999)
    if homography is None or not plausible(homography, reference.size):
        return None
    agree = pairs[mask.ravel().astype(bool)]
    inliers = min(_distinct(query.points[agree[:, 0]]), _distinct(reference.points[agree[:, 1]]))
    return _Fit(query, homography, inliers) if inliers >= INLIERS else None


def _distinct(points: np.ndarray) -> int:
    return len(np.unique(points // CELL, axis=0))


def plausible(homography: np.ndarray, size: tuple[int, int]) -> bool:
    """Return whether an edit could map a picture of this size so: not mirrored, torn, or stretched beyond use."""
    if not np.isfinite(homography).all():
        return False
    corners = np.column_stack([_corners(size), np.ones(4)])
    depths = corners @ homography[2]
    if depths.min() <= 0 or depths.max() > PERSPECTIVE * depths.min():
        return False
    slope = _slope(homography, size)
    largest, least = np.linalg.svd(slope, compute_uv=False)
    enlarged = np.linalg.det(slope)
    return bool(enlarged > 0 and SCALES[0] < np.sqrt(enlarged) < SCALES[1] and largest < STRETCH * least)


def _slope(homography: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return (2, 2), how a homography enlarges and turns the surroundings of a picture's center."""
    x, y, depth = homography @ [size[0] / 2, size[1] / 2, 1.0]
    return (homography[:2, :2] * depth - np.outer([x, y], homography[2, :2])) / depth**2


def _corners(size: tuple[int, int]) -> np.ndarray:
    width, height = size
    return np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float64)


class _Comparison:
    """The reference laid onto the query, both reduced, and how far they agree where both are."""

    def __init__(self, fit: _Fit, reference: LocalFeatures) -> None:
        cv2 = opencv()
        self.fit = fit
        self.corners = _mapped(fit.homography, _corners(reference.size))
        common = clipped(self.corners, fit.query.size)
        self.query_share = min(1.0, area(common) / _area(fit.query.size))
        # the common part and not the query is mapped back: corners of the query may lie beyond the vanishing line
        self.reference_share = (min(1.0, area(_mapped(np.linalg.inv(fit.homography), common)) / _area(reference.size))
                                if len(common) else 0.0)
        scale = COMPARED / max(fit.query.size)
        size = tuple(max(1, round(side * scale)) for side in fit.query.size)
        laid = np.diag([scale, scale, 1.0]) @ fit.homography
        self.query = cv2.GaussianBlur(cv2.resize(fit.query.gray, size, interpolation=cv2.INTER_AREA), (0, 0), 1.0)
        shrunk = np.sqrt(np.linalg.det(_slope(laid, reference.size)))
        gray = reference.gray
        if shrunk < 1:                                          # else what is too fine for the query would alias
            gray = cv2.GaussianBlur(gray, (0, 0), min(0.5 / shrunk, BLUR))
        self.other = cv2.GaussianBlur(cv2.warpPerspective(gray, laid, size), (0, 0), 1.0)
        covered = cv2.warpPerspective(np.ones_like(reference.gray), laid, size) > 0.99
        self.outside = cv2.erode((~covered).astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=1).astype(bool)
        correlation, textured = _correlation(self.query, self.other)
        inside = cv2.erode(covered.astype(np.uint8), np.ones((WINDOW, WINDOW), np.uint8), borderValue=1).astype(bool)
        self.inside, self.compared = inside, inside & textured
        self.correlation = correlation
        # from the edge of the reference within the query; the query's own edge is none
        framed = cv2.copyMakeBorder(covered.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=1)
        self.distance = cv2.distanceTransform(framed, cv2.DIST_L2, 3)[1:-1, 1:-1]
        self.agreement = self.share(self.compared, ALIKE) or 0.0

    def share(self, where: np.ndarray, least: float) -> float | None:
        """Return the share of some windows whose correlation is at least so high; None for too few of them."""
        return float((self.correlation[where] > least).mean()) if where.sum() >= FEWEST else None

    @property
    def changed(self) -> float:
        """Share of the common area that the largest spot covers where the two differ."""
        cv2 = opencv()
        if self.inside.sum() < FEWEST:
            return 0.0
        own, other = self.query[self.inside], self.other[self.inside]
        # the reference's gray values, in their order, become the query's: that takes any change of brightness away
        levels = np.interp(self.other, np.sort(other)[:: max(1, len(other) // 256)],
                           np.sort(own)[:: max(1, len(own) // 256)])
        differs = cv2.blur(np.abs(self.query - levels.astype(np.float32)), (SPOT, SPOT)) > DIFFERENT
        spots = (self.inside & (differs | (self.compared & (self.correlation < UNLIKE)))).astype(np.uint8)
        spots = cv2.morphologyEx(spots, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        areas = cv2.connectedComponentsWithStats(spots)[2][1:, cv2.CC_STAT_AREA]
        return float(areas.max(initial=0) / self.inside.sum())

    @property
    def flat(self) -> float:
        """Share of what looks alike that has, within `LEVELS` gray values, one of two of them: what was drawn, such as
        a frame or a caption, and not photographed."""
        alike = self.query[self.compared & (self.correlation > ALIKE)]
        if not len(alike):
            return 0.0
        counts = np.convolve(np.bincount(alike.astype(np.int64), minlength=256), np.ones(2 * LEVELS + 1), "same")
        first = int(counts.argmax())
        most = counts[first]
        counts[max(0, first - 2 * LEVELS - 1) : first + 2 * LEVELS + 2] = 0
        return float((most + counts.max()) / len(alike))

    @property
    def templated(self) -> bool:
        """Whether what the two share may be no more than a frame, a sticker or a caption over two photographs."""
        return self.agreement < LITTLE or (self.agreement < EDITED and self.flat > DRAWN)

    @property
    def bordered(self) -> bool | None:
        """Whether what surrounds the reference has one color; None if its own edge has the same color, as where a thing
        on a plain ground was cut out."""
        values = self.query[self.outside]
        if len(values) < FEWEST:
            return False
        color = np.median(values)
        if (np.abs(values - color) <= STEP).mean() < PLAIN:
            return False
        edge = self.query[(self.distance >= RIM[0]) & (self.distance < RIM[1])]
        return None if (np.abs(edge - color) <= STEP).mean() >= PLAIN_RIM else True

    @property
    def pasted(self) -> bool | None:
        """Whether the reference ends at its edge instead of going on as a scene does; None if that is not clear."""
        fill = _fill_of_a_rotation(self.fit.query.lab)
        seams = {gap: _seam(self.fit.query, self.corners, gap, fill) for gap in SEAMS}
        if None in seams.values():
            return None
        steps = {gap: seam[0] for gap, seam in seams.items() if seam is not None}
        apart = seams[3.0] is not None and seams[3.0][1] <= APART
        shares = {band: self.share(self.compared & (self.distance >= band[0]) & (self.distance < band[1]), SAME)
                  for band in FADES}
        inner = self.share(self.compared & (self.distance >= INNER), SAME)
        if inner is None or inner < WHOLLY or self.fit.inliers < SURE:
            shares = {}         # something was changed inside, or all is blurred, perhaps up to the edge: no fade

        def clues(place: int) -> tuple[bool, bool, bool, bool]:
            near, middle, far = (steps[gap] >= SEAMS[gap][place] for gap in SEAMS)
            return near, middle, far, any(share is not None and share <= FADES[band][place]
                                          for band, share in shares.items())

        near, middle, far, fades = clues(0)
        if near or (middle and far) or fades:
            return True
        near, middle, far, fades = clues(1)
        return True if near and apart else None if near or middle or far or fades else False


def _fill_of_a_rotation(lab: np.ndarray) -> np.ndarray:
    """Return (H, W) bool: the four corners that a slight rotation has filled with one color; none if there are none.

    A bar along an edge, such as that of a screenshot, joins two corners and is no such fill.
    """
    cv2 = opencv()
    height, width = lab.shape[:2]
    corners = [(1, 1), (width - 2, 1), (width - 2, height - 2), (1, height - 2)]
    color = np.median([lab[y, x] for x, y in corners], axis=0)
    near = (np.abs(lab - color).max(axis=2) <= FILL).astype(np.uint8)
    _, labels = cv2.connectedComponents(near, connectivity=4)
    found = [labels[y, x] for x, y in corners]
    if 0 in found or len(set(found)) < 4:
        return np.zeros((height, width), bool)
    return cv2.dilate(np.isin(labels, found).astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)


def _seam(query: LocalFeatures, corners: np.ndarray, gap: float, fill: np.ndarray) -> tuple[float, float] | None:
    """Compare the query's colors on both sides of the edges of the reference, so many pixels from them.

    Where one of the sides lies in the `fill` (H, W) of a rotation, nothing is compared.

    Returns:
        The mean difference across the edges over that as far inside, and the correlation of the colors along both
        sides; None if too little of the edges is within the query.
    """
    cv2 = opencv()
    limit = np.array(query.size) - 1
    center, sides = corners.mean(axis=0), []
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        length = np.linalg.norm(end - start)
        inward = np.array([start[1] - end[1], end[0] - start[0]]) / length
        inward = inward if inward @ (center - start) > 0 else -inward
        line = start + np.linspace(0.04, 0.96, max(2, int(length / 2)))[:, None] * (end - start)
        places = np.stack([line + inward * distance for distance in (-gap, gap, 3 * gap)])
        seen = np.flatnonzero(((places >= 0) & (places <= limit)).all(axis=(0, 2)))
        x, y = places[:, seen].round().astype(np.int64).T
        seen = seen[~fill[y, x].any(axis=1)]
        if len(seen):
            sides.append(np.stack([cv2.remap(query.lab, place[None, seen].astype(np.float32), None,
                                             cv2.INTER_LINEAR)[0] for place in places]))
    if sum(side.shape[1] for side in sides) < FEWEST // 2:
        return None
    out, near, deep = np.concatenate(sides, axis=1)
    step = np.abs(out - near).sum(axis=1).mean() / max(np.abs(near - deep).sum(axis=1).mean(), 1.0)
    # each side of the reference has its own mean color
    out, near = (np.concatenate([side[place] - side[place].mean(axis=0) for side in sides]) for place in (0, 1))
    return float(step), float((out * near).sum() / np.sqrt((out * out).sum() * (near * near).sum() + 1e-3))


def _kind(fit: _Fit, compared: _Comparison) -> Kind:
    whole = compared.reference_share >= WHOLE
    if compared.query_share >= WHOLE:
        return "unsure" if compared.templated else "same" if whole else "within"
    if compared.bordered:
        return "border"
    pasted = compared.pasted
    if pasted and whole and compared.bordered is not None:      # a part of it may be another shot of the scene
        return "pasted"
    if pasted is not False or compared.bordered is None or compared.agreement < EDITED or fit.inliers < SURE:
        return "unsure"
    return "shows more" if whole else "partial"


def _mapped(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    return opencv().perspectiveTransform(points[None], homography)[0]


def clipped(polygon: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the part (N, 2) of a convex polygon that lies within a picture; N = 0 if none does.

    Sutherland and Hodgman's clipping; OpenCV's `intersectConvexConvex` fails where edges coincide.
    """
    for axis, limit, sign in ((0, 0, 1), (0, size[0], -1), (1, 0, 1), (1, size[1], -1)):
        inside = sign * (polygon[:, axis] - limit)          # >= 0 on this side of the picture's edge
        kept = []
        for place in range(len(polygon)):
            here, there = polygon[place - 1], polygon[place]
            if inside[place - 1] * inside[place] < 0:
                kept.append(here + (there - here) * inside[place - 1] / (inside[place - 1] - inside[place]))
            if inside[place] >= 0:
                kept.append(there)
        if len(kept) < 3:
            return np.zeros((0, 2))
        polygon = np.array(kept)
    return polygon


def area(polygon: np.ndarray) -> float:
    """Return the area of a convex polygon."""
    x, y = polygon.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _correlation(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the correlation of two pictures in the window around each pixel, and where one of them has texture."""
    def mean(values: Any) -> np.ndarray:
        return opencv().blur(values, (WINDOW, WINDOW))

    means = mean(first), mean(second)
    variances = [np.maximum(mean(values * values) - middle * middle, 1e-3)
                 for values, middle in zip((first, second), means, strict=True)]
    correlation = (mean(first * second) - means[0] * means[1]) / np.sqrt(variances[0] * variances[1])
    return correlation, np.maximum(*variances) > TEXTURE
