"""Package `ascl`: image-text retrieval (AsCL) and image copy detection (ASL, RDCD)."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "ascl/__init__.py").read_text(encoding="utf-8"), re.M)[1]
# the presets are at the top of the repository; the wheel ships them as `ascl.configs`
CONFIGS = {f"ascl.{folder.relative_to(HERE).as_posix().replace('/', '.')}": folder.relative_to(HERE).as_posix()
           for folder in (HERE / "configs", HERE / "configs/baselines", HERE / "configs/baselines/published",
                          HERE / "configs/image_copy")}

SCALE = ["ray[data]>=2.9"]  # extraction on several machines
SEARCH = ["faiss-cpu>=1.8", "opencv-python-headless>=4.8"]  # a compressed index, PCA whitening; local features
COPY = ["timm>=1.0", "imagehash>=4.3"]  # further backbones for descriptors, perceptual hashes
HEIC = ["pillow-heif>=0.16"]  # photos of phones
LABELS = ["eccv_caption>=0.1"]  # corrected labels of COCO
DOCS = ["mkdocs>=1.6", "mkdocs-material>=9.5.30", "mkdocstrings[python]>=1.0", "mkdocstrings-python>=2.0",
        "latex2mathml>=3.77"]  # docs/ as a site

setup(
    name="ascl",
    version=VERSION,
    description="Image-text retrieval and image copy detection where similarity has a direction, evaluated honestly",
    license="MIT",
    python_requires=">=3.10",
    packages=[*find_packages(include=["ascl", "ascl.*"]), *CONFIGS],
    package_dir=CONFIGS,
    package_data={"ascl": ["py.typed"], "ascl.analysis.report": ["*.html"], "ascl.image_copy.matching": ["*.html"],
                  **{name: ["*.yaml"] for name in CONFIGS}},
    entry_points={"console_scripts": ["ascl = ascl.cli:main"]},
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "transformers>=4.56",
        "accelerate>=1.0",
        "numpy>=1.26",
        "scipy>=1.11",
        "h5py>=3.10",
        "pillow>=10.1",
        "nltk>=3.8",
        "safetensors>=0.4",
        "tensorboard>=2.16",
        "pyyaml>=6",
        "tqdm>=4.66",
        "psutil>=5.9",
        "filelock>=3.12",
        "matplotlib>=3.8",
        "jinja2>=3.1",
        "jsonargparse[signatures,shtab]>=4.49",
    ],
    extras_require={
        "scale": SCALE,
        "search": SEARCH,
        "copy": COPY,
        "labels": LABELS,
        "heic": HEIC,
        "docs": DOCS,
        "dev": [
            *SCALE, *SEARCH, *COPY, *LABELS, *HEIC, *DOCS,
            "pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.100", "ruff>=0.6", "mypy>=1.11",
        ],
    },
)
