"""Baselines with the interface of `RetrievalModel`, each with its paper's score."""

from ascl.models.baselines.clip import Clip
from ascl.models.baselines.dime import Dime
from ascl.models.baselines.dsran import Dsran
from ascl.models.baselines.imram import Imram
from ascl.models.baselines.scan import Scan
from ascl.models.baselines.two_tower import TwoTower
from ascl.models.baselines.vse import Vse
from ascl.models.baselines.vse_infinity import VseInfinity

__all__ = ["Clip", "Dime", "Dsran", "Imram", "Scan", "TwoTower", "Vse", "VseInfinity"]
