"""Package `ascl`: image-text retrieval (AsCL) and image copy detection (ASL, RDCD)."""

from setuptools import find_packages, setup

SCALE = ["ray[data]>=2.9"]  # extraction on several machines
SEARCH = ["faiss-cpu>=1.8"]  # an index of images
COPY = ["timm>=1.0", "imagehash>=4.3"]  # further backbones for descriptors, perceptual hashes
LABELS = ["eccv_caption>=0.1"]  # corrected labels of COCO

setup(
    name="ascl",
    version="0.1.0",
    description="Image-text retrieval and image copy detection where similarity has a direction, evaluated honestly",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["ascl", "ascl.*"]),
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "transformers>=4.56",
        "accelerate>=1.0",
        "numpy>=1.26",
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
        "jsonargparse[signatures]>=4.34",
    ],
    extras_require={
        "scale": SCALE,
        "search": SEARCH,
        "copy": COPY,
        "labels": LABELS,
        "dev": [
            *SCALE, *SEARCH, *COPY, *LABELS,
            "pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.100", "ruff>=0.6", "mypy>=1.11",
        ],
    },
)
