"""Patch tokens of vision transformers: against naive pooling of the models' own output, boxes by hand, refusals."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from ascl.core.errors import DataError
from ascl.features import patches
from ascl.features.patches import PatchBackend, PatchGlobalBackend, ProcessorPixels

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
WITH_MLP = {**TINY, "intermediate_size": 32}
TEXT = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2,
}
SQUARE = {"height": 48, "width": 48}
CROPPED = {"size": {"shortest_edge": 56}, "crop_size": SQUARE}

# Of each family: the class that its checkpoints are saved from, its configuration, its processor and that one's
# settings, the class of its vision tower, and the number of tokens before the patches.
FAMILIES = {
    "clip": (
        "CLIPModel", {"text_config": TEXT, "vision_config": {**WITH_MLP, "image_size": 48}, "projection_dim": 12},
        "CLIPImageProcessor", {"size": {"shortest_edge": 48}, "crop_size": SQUARE}, "CLIPVisionModel", 1,
    ),
    "siglip": (
        "SiglipModel", {"text_config": TEXT, "vision_config": {**WITH_MLP, "image_size": 48}}, "SiglipImageProcessor",
        {"size": SQUARE}, "SiglipVisionModel", 0,
    ),
    "dinov2": ("Dinov2Model", {**TINY, "image_size": 64}, "BitImageProcessor", CROPPED, "Dinov2Model", 1),
    "dinov2_with_registers": (
        "Dinov2WithRegistersModel", {**TINY, "image_size": 64, "num_register_tokens": 3}, "BitImageProcessor", CROPPED,
        "Dinov2WithRegistersModel", 4,
    ),
    "dinov3_vit": (
        "DINOv3ViTModel", {**WITH_MLP, "image_size": 48, "num_register_tokens": 3}, "DINOv3ViTImageProcessorFast",
        {"size": SQUARE}, "DINOv3ViTModel", 4,
    ),
    "vit": ("ViTModel", {**WITH_MLP, "image_size": 48}, "ViTImageProcessor", {"size": SQUARE}, "ViTModel", 1),
    "deit": (
        "DeiTModel", {**WITH_MLP, "image_size": 48}, "DeiTImageProcessor",
        {"size": {"height": 56, "width": 56}, "crop_size": SQUARE}, "DeiTModel", 2,
    ),
    "beit": (
        "BeitModel", {**WITH_MLP, "image_size": 48, "drop_path_rate": 0.5}, "BeitImageProcessor",
        {"size": SQUARE, "do_center_crop": False}, "BeitModel", 1,
    ),
}
CONFIGS = {
    name: family[0].removesuffix("Model").removesuffix("ForImageClassification") + "Config"
    for name, family in FAMILIES.items()
}


def save(folder: Path, model_class: str, config_class: str, config: dict, processor: str, processing: dict) -> Path:
    """A checkpoint of random numbers, layer norms and special tokens included, so that nothing is 0 or 1 by default."""
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    getattr(transformers, processor)(**processing).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Name of a family -> folder."""
    root, made = tmp_path_factory.mktemp("checkpoints"), {}

    def folder(name: str) -> str:
        if name not in made:
            model, config, processor, processing, *_ = FAMILIES[name]
            made[name] = save(root / name, model, CONFIGS[name], config, processor, processing)
        return str(made[name])

    return folder


@pytest.fixture
def copy(checkpoint, tmp_path):
    """Name of a family -> a copy of its folder to spoil."""
    return lambda name: Path(shutil.copytree(checkpoint(name), tmp_path / name))


def tower(checkpoint, name: str) -> torch.nn.Module:
    return getattr(transformers, FAMILIES[name][4]).from_pretrained(checkpoint(name)).eval()


def pictures(backend, count: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    shape = (backend.prepare.height, backend.prepare.width, 3)
    return [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(count)]


def pixel_values(folder: str, arrays: list[np.ndarray]) -> torch.Tensor:
    """Normalized by the definition, from the numbers in the file."""
    settings = json.loads((Path(folder) / "preprocessor_config.json").read_text())
    values = np.stack(arrays).astype(np.float64) * settings["rescale_factor"]
    values = (values - settings["image_mean"]) / settings["image_std"]
    return torch.from_numpy(values.transpose(0, 3, 1, 2).astype(np.float32))


def covered(cell: int, grid: int, length: int) -> list[int]:
    """Places that overlap the cell [cell, cell + 1) / grid of the length: the definition, place by place."""
    return [
        place for place in range(length) if place * grid < (cell + 1) * length and (place + 1) * grid > cell * length
    ]


def naive_regions(tokens: torch.Tensor, rows: int, columns: int, grid: int) -> np.ndarray:
    """(B, rows * columns, D), row by row -> (B, grid * grid, D)."""
    cells = []
    for row in range(grid):
        for column in range(grid):
            places = [y * columns + x for y in covered(row, grid, rows) for x in covered(column, grid, columns)]
            cells.append(sum(tokens[:, place] for place in places) / len(places))
    return torch.stack(cells, dim=1).numpy()


SIZES = np.array([[100, 80], [60, 90]])


# --- regions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [6, 4])  # 4 does not divide the 6 patches of a side
@pytest.mark.parametrize("name", FAMILIES)
def test_regions_are_means_over_their_cells_of_the_models_own_tokens(checkpoint, name, grid):
    backend = PatchBackend(checkpoint(name), grid=grid)
    batch = pictures(backend)
    with torch.inference_mode():
        tokens = tower(checkpoint, name)(pixel_values=pixel_values(checkpoint(name), batch)).last_hidden_state
    prefix = FAMILIES[name][5]
    assert tokens.shape[1] == prefix + 36
    found = backend.extract(batch, SIZES)["regions"]
    assert found.shape == (2, grid * grid, 16) and found.dtype == np.float32
    assert np.allclose(found, naive_regions(tokens[:, prefix:], 6, 6, grid), atol=1e-4)
    assert backend.encoder.prefix == prefix and backend.dim == 16


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_before_the_patches_are_in_no_region(checkpoint, name):
    """Class, register and distillation tokens before any attention: changing them changes no region at layer 0."""
    backend = PatchBackend(checkpoint(name), layer=0)
    batch = pictures(backend)
    before = backend.extract(batch, SIZES)["regions"]
    special = [
        parameter
        for key, parameter in backend.encoder.model.named_parameters()
        if key.endswith(("cls_token", "class_embedding", "register_tokens", "distillation_token"))
    ]
    assert bool(special) == (name != "siglip")
    with torch.no_grad():
        for parameter in special:
            parameter += 5
    assert np.array_equal(backend.extract(batch, SIZES)["regions"], before)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_patch_that_changes_is_the_region_at_its_place(checkpoint, name):
    backend = PatchBackend(checkpoint(name), layer=0)
    plain = np.full((48, 48, 3), 128, dtype=np.uint8)
    for place in (0, 1, 6, 23, 30, 35):
        marked = plain.copy()
        row, column = divmod(place, 6)
        marked[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = 255
        before, after = backend.extract([plain, marked], SIZES)["regions"]
        assert np.flatnonzero((before != after).any(axis=1)).tolist() == [place]


def test_rows_and_columns_of_an_input_that_is_not_square(tmp_path):
    config = {**WITH_MLP, "image_size": (32, 96), "patch_size": (8, 16)}
    folder = save(
        tmp_path / "wide", "ViTModel", "ViTConfig", config, "ViTImageProcessor", {"size": {"height": 32, "width": 96}}
    )
    backend = PatchBackend(str(folder), grid=3)
    assert backend.encoder.map_size == (4, 6)
    batch = pictures(backend)
    with torch.inference_mode():
        model = transformers.ViTModel.from_pretrained(folder).eval()
        tokens = model(pixel_values=pixel_values(str(folder), batch)).last_hidden_state[:, 1:]
    found = backend.extract(batch, np.array([[600, 400]] * 2))
    assert np.allclose(found["regions"], naive_regions(tokens, 4, 6, 3), atol=1e-4)
    # Three cells over four rows of patches: the second covers the two in the middle. Over six columns: two each.
    assert found["boxes"][0, 4].tolist() == [200, 100, 400, 300]
    assert found["boxes"][0, 8].tolist() == [400, 200, 600, 400]
    marked = batch[0].copy()
    marked[24:, :16] = 255 - marked[24:, :16]
    first = PatchBackend(str(folder), grid=4, layer=0).extract([batch[0], marked], np.array([[600, 400]] * 2))
    changed = (first["regions"][0] != first["regions"][1]).any(axis=1)
    assert np.flatnonzero(changed).tolist() == [12]  # the last row's first cell, not the first row's last


@pytest.mark.parametrize(
    ("name", "norm"), [("vit", "layernorm"), ("siglip", "post_layernorm"), ("dinov3_vit", "norm"), ("clip", None)]
)
def test_layers_count_the_blocks_and_only_the_last_has_passed_the_norm(checkpoint, name, norm):
    model, prefix = tower(checkpoint, name), FAMILIES[name][5]
    entered, left = [], []  # what enters and leaves each block, as the model itself hands it over

    def note(block, args, kwargs, output):
        entered.append(args[0] if args else kwargs["hidden_states"])
        left.append(output if torch.is_tensor(output) else output[0])

    for blocks in (module for module in model.modules() if isinstance(module, torch.nn.ModuleList)):
        for block in blocks:
            block.register_forward_hook(note, with_kwargs=True)
    backends = {layer: PatchBackend(checkpoint(name), layer=layer) for layer in (-1, 0, 1, 2, -2, -3)}
    batch = pictures(backends[0])
    found = {layer: backend.extract(batch, SIZES)["regions"] for layer, backend in backends.items()}
    with torch.inference_mode():
        output = model(pixel_values=pixel_values(checkpoint(name), batch))
        modules = {key.split(".")[-1]: module for key, module in model.named_modules()}
        last = left[1] if norm is None else modules[norm](left[1])
    for layer, wanted in ((0, entered[0]), (1, left[0]), (2, last), (-1, output.last_hidden_state)):
        assert np.allclose(found[layer], wanted[:, prefix:], atol=1e-4)
    assert all(np.array_equal(found[layer], found[layer + 3]) for layer in (-1, -2, -3))
    assert backends[1].settings["layer"] == 1


# --- what of the image is seen ---------------------------------------------------------------------------------------


def test_boxes_of_a_center_crop_cover_what_the_crop_shows(checkpoint):
    backend = PatchBackend(checkpoint("clip"), grid=2)
    blank = pictures(backend, 1)
    # 640x480: short side to 48 makes 64x48, of which the columns 8 to 56 stay: 80 to 560 of the original.
    found = backend.extract(blank * 2, np.array([[640, 480], [300, 600]]))["boxes"]
    assert found.dtype == np.float32
    assert found[0].tolist() == [[80, 0, 320, 240], [320, 0, 560, 240], [80, 240, 320, 480], [320, 240, 560, 480]]
    assert found[1].tolist() == [[0, 150, 150, 300], [150, 150, 300, 300], [0, 300, 150, 450], [150, 300, 300, 450]]
    # 560x560: to 56x56, of which 4 to 52 stay.
    boxes = PatchBackend(checkpoint("dinov2"), grid=1).extract(blank, np.array([[560, 560]]))["boxes"]
    assert boxes.tolist() == [[[40, 40, 520, 520]]]


def test_squash_shows_all_and_its_boxes_cover_all(checkpoint):
    image = Image.new("RGB", (120, 40), "black")
    image.paste((255, 255, 255), (0, 0, 15, 40))  # outside the central square
    cropped, squashed = (PatchBackend(checkpoint("dinov2"), grid=2, resize=way) for way in ("processor", "squash"))
    assert cropped.prepare(image).max() == 0
    assert squashed.prepare(image).shape == (48, 48, 3) and squashed.prepare(image)[:, :4].min() == 255
    boxes = squashed.extract(pictures(squashed, 1), np.array([[120, 40]]))["boxes"][0]
    assert boxes.tolist() == [[0, 0, 60, 20], [60, 0, 120, 20], [0, 20, 60, 40], [60, 20, 120, 40]]
    assert squashed.settings != cropped.settings


def test_pixels_that_no_patch_covers_are_in_no_box(tmp_path):
    config = {"text_config": TEXT, "vision_config": {**WITH_MLP, "image_size": 50}}
    processing = {"size": {"height": 50, "width": 50}}
    folder = save(tmp_path / "m", "SiglipModel", "SiglipConfig", config, "SiglipImageProcessor", processing)
    backend = PatchBackend(str(folder), grid=3)
    plain = np.full((50, 50, 3), 128, dtype=np.uint8)
    marked = plain.copy()
    marked[48:], marked[:, 48:] = 255, 255
    found = backend.extract([plain, marked], np.array([[500, 250]] * 2))
    assert np.array_equal(found["regions"][0], found["regions"][1])
    assert found["boxes"][0, 0].tolist() == [0, 0, 160, 80] and found["boxes"][0, 8].tolist() == [320, 160, 480, 240]


def wavy(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 9), np.sin(y / 6), np.sin((x + 2 * y) / 11)]
    return Image.fromarray((128 + 100 * np.stack(waves, axis=-1)).astype(np.uint8))


@pytest.mark.parametrize("size", [(200, 150), (131, 197), (97, 97), (48, 300), (40, 30)])
@pytest.mark.parametrize("name", FAMILIES)
def test_preprocessing_is_the_processors_own(checkpoint, name, size):
    """Within a gray level, or two where cubic filters overshoot: Pillow rounds between its two passes, and torch's
    resizing, which the processors use, rounds once or (DINOv3, which rescales first) not at all."""
    backend = PatchBackend(checkpoint(name))
    image = wavy(*size)
    theirs = transformers.AutoImageProcessor.from_pretrained(checkpoint(name))(image, return_tensors="pt")
    ours = backend.encoder.normalize(torch.from_numpy(backend.prepare(image).copy())[None])
    settings = json.loads((Path(checkpoint(name)) / "preprocessor_config.json").read_text())
    levels = torch.tensor(settings["image_std"]).view(3, 1, 1) * 255
    difference = (ours - theirs["pixel_values"]).abs() * levels
    assert difference.max() <= 2.01 and difference.mean() < 0.5


def test_preparation_goes_to_workers(checkpoint):
    backend = PatchBackend(checkpoint("clip"))
    prepare = pickle.loads(pickle.dumps(backend.prepare))
    assert len(pickle.dumps(prepare)) < 1000  # no weights travel
    image = wavy(90, 70)
    assert np.array_equal(prepare(image), backend.prepare(image)) and prepare(image).dtype == np.uint8


@pytest.mark.parametrize("size", [(1, 1), (10000, 1), (1, 10000), (3, 2)])
def test_pixels_and_strips(checkpoint, size):
    for resize in ("processor", "squash"):
        backend = PatchBackend(checkpoint("dinov2"), resize=resize)
        found = backend.extract([backend.prepare(wavy(*size))], np.array([size]))
        assert np.isfinite(found["regions"]).all()
        assert found["boxes"].min() >= 0 and (found["boxes"][0].max(axis=0) <= np.tile(size, 2)).all()


def test_a_box_may_not_pass_the_border_by_rounding():
    for width in range(49, 1000, 7):
        x1, y1, x2, y2 = ProcessorPixels(48, 48, 48, 3).view(width, 1000)
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= 1000


# --- global vectors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_globals_are_the_models_pooled_output(checkpoint, name):
    backend = PatchGlobalBackend(checkpoint(name))
    batch = pictures(backend)
    with torch.inference_mode():
        output = tower(checkpoint, name)(pixel_values=pixel_values(checkpoint(name), batch))
    found = backend.extract(batch, SIZES)["globals"]
    assert found.shape == (2, backend.dim) == (2, 16) and found.dtype == np.float32
    assert np.allclose(found, output.pooler_output, atol=1e-4)
    assert backend.settings["pooling"] == "pooler_output" and backend.settings["backend"] == "patch_global"


def test_a_pooler_that_the_file_has_not_is_never_used(tmp_path):
    config = {**WITH_MLP, "image_size": 48}
    folder = save(
        tmp_path / "m", "ViTForImageClassification", "ViTConfig", config, "ViTImageProcessor", {"size": SQUARE}
    )
    backend = PatchGlobalBackend(str(folder))
    batch = pictures(backend)
    with torch.inference_mode():
        model = transformers.ViTForImageClassification.from_pretrained(folder).eval().vit
        tokens = model(pixel_values=pixel_values(str(folder), batch)).last_hidden_state
    assert np.allclose(backend.extract(batch, SIZES)["globals"], tokens[:, 0], atol=1e-4)
    assert backend.settings["pooling"] == "class_token"
    assert PatchBackend(str(folder)).extract(batch, SIZES)["regions"].shape == (2, 36, 16)


def test_without_class_token_and_pooler_the_patches_are_averaged(tmp_path):
    config = {**WITH_MLP, "image_size": 48}
    folder = save(tmp_path / "m", "IJepaModel", "IJepaConfig", config, "ViTImageProcessor", {"size": SQUARE})
    weights = transformers.IJepaModel.from_pretrained(folder, add_pooling_layer=False)
    weights.save_pretrained(folder)
    backend = PatchGlobalBackend(str(folder))
    batch = pictures(backend)
    with torch.inference_mode():
        tokens = weights.eval()(pixel_values=pixel_values(str(folder), batch)).last_hidden_state
    wanted = sum(tokens[:, place] for place in range(36)) / 36
    assert backend.settings["pooling"] == "mean_patch"
    assert np.allclose(backend.extract(batch, SIZES)["globals"], wanted, atol=1e-4)


# --- loading, settings, modes ----------------------------------------------------------------------------------------


def test_only_the_vision_tower_is_loaded(checkpoint):
    for name in ("clip", "siglip"):
        model = PatchBackend(checkpoint(name)).encoder.model
        wanted = tower(checkpoint, name).state_dict()
        assert not any("text" in key for key in model.state_dict())
        assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())


def test_settings_hold_all_that_decides_the_numbers_and_no_path(checkpoint, copy, tmp_path):
    folder = copy("vit")
    base = PatchBackend(str(folder)).settings
    assert json.loads(json.dumps(base)) == base
    assert base["model"] == "vit" and str(tmp_path) not in json.dumps(base)
    for changes in ({"grid": 3}, {"layer": 1}, {"resize": "squash"}, {"precision": "bfloat16"}):
        assert PatchBackend(str(folder), **changes).settings != base
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.4, 0.5, 0.6]}))
    assert PatchBackend(str(folder)).settings["image_mean"] == [0.4, 0.5, 0.6]
    model = transformers.ViTModel.from_pretrained(folder)
    with torch.no_grad():
        model.layernorm.bias += 1
    model.save_pretrained(folder)
    assert PatchBackend(str(folder)).settings["weights_sha256"] != base["weights_sha256"]


def test_it_works_in_evaluation_mode_whatever_was_done_before(checkpoint):
    backend = PatchBackend(checkpoint("beit"))  # of which half of the blocks are left out in training
    batch = pictures(backend)
    wanted = backend.extract(batch, SIZES)["regions"]
    backend.encoder.model.train()
    assert np.array_equal(backend.extract(batch, SIZES)["regions"], wanted)


def test_low_precision_is_of_the_network_alone(checkpoint):
    plain, low = (PatchBackend(checkpoint("dinov2"), precision=precision) for precision in ("float32", "bfloat16"))
    batch = pictures(plain)
    wanted, found = plain.extract(batch, SIZES)["regions"], low.extract(batch, SIZES)["regions"]
    assert found.dtype == np.float32
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert 0 < error < 0.1


def test_names_and_folders_that_give_nothing(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="absent: no such folder with a model"):
        PatchBackend(str(tmp_path / "absent"))
    with pytest.raises(DataError, match="no model could be loaded from this folder"):
        PatchBackend(str(tmp_path))

    def unreachable(name, **settings):
        raise OSError("no connection\nand more")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(DataError, match=r"openai/clip-vit.*the hub under this name \(no connection\)$"):
        PatchBackend("openai/clip-vit-base-patch32")


def test_a_folder_without_a_processor_says_which_file_is_missing(copy):
    folder = copy("vit")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(DataError, match="no image processor could be loaded.*preprocessor_config.json"):
        PatchBackend(str(folder))


def test_weights_that_the_file_has_not_are_listed_and_never_random(copy):
    from safetensors.torch import load_file, save_file

    folder = copy("clip")
    state = load_file(folder / "model.safetensors")
    del state["vision_model.encoder.layers.1.mlp.fc1.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"no weights for 1 \(.*layers\.1\.mlp\.fc1\.weight\)"):
        PatchBackend(str(folder))


OTHERS = {
    "resnet": ("ResNetModel", "ResNetConfig", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}),
    "bert": ("BertModel", "BertConfig", {**{k: v for k, v in WITH_MLP.items() if k != "patch_size"}, "vocab_size": 9}),
    "swin": (
        "SwinModel", "SwinConfig",
        {"image_size": 48, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "window_size": 3},
    ),
    "vit_mae": ("ViTMAEModel", "ViTMAEConfig", {**WITH_MLP, "image_size": 48}),
    "yolos": ("YolosModel", "YolosConfig", {**WITH_MLP, "image_size": [48, 48], "num_detection_tokens": 5}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_architectures_without_a_token_for_each_patch_are_refused(tmp_path, name):
    folder = save(tmp_path / name, *OTHERS[name], "ViTImageProcessor", {"size": SQUARE})
    with pytest.raises(DataError, match=f"architecture {name} .*patch tokens.*supported are .*CLIP, SigLIP.*DINOv2"):
        PatchBackend(str(folder))


def test_grids_layers_and_sizes_that_do_not_fit(checkpoint, copy):
    with pytest.raises(DataError, match="6x6 patches: a grid of 7x7"):
        PatchBackend(checkpoint("vit"), grid=7)
    with pytest.raises(DataError, match="a grid of 0x0"):
        PatchBackend(checkpoint("vit"), grid=0)
    with pytest.raises(DataError, match="2 blocks: layer 3 is not one of -3 to 2"):
        PatchBackend(checkpoint("vit"), layer=3)
    folder = copy("vit")
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    with pytest.raises(DataError, match="vit does not take the 64x64 images that its image processor makes"):
        PatchBackend(str(folder))


@pytest.mark.parametrize(
    "processing",
    [
        {"size": {"shortest_edge": 48, "longest_edge": 90}, "do_center_crop": False},
        {"size": {"shortest_edge": 48}, "do_center_crop": False}, {"size": {"shortest_edge": 48}, "do_resize": False},
    ],
)
def test_a_processor_without_one_output_size_can_be_squashed(copy, processing):
    folder = copy("dinov2")
    transformers.CLIPImageProcessor(**{"crop_size": SQUARE} | processing).save_pretrained(folder)
    with pytest.raises(DataError, match="does not make all images one size.*squash"):
        PatchBackend(str(folder))
    backend = PatchBackend(str(folder), resize="squash")
    assert backend.prepare(wavy(90, 60)).shape == (48, 48, 3)


def test_a_crop_larger_than_the_image_is_refused(copy):
    folder = copy("dinov2")
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=SQUARE)
    processor.save_pretrained(folder)
    with pytest.raises(DataError, match="crops to more than it scales to"):
        PatchBackend(str(folder))


@pytest.mark.parametrize("resize", ["processor", "squash"])
def test_a_processor_that_does_more_than_it_says_is_found_out(copy, resize):
    folder = copy("vit")
    transformers.MobileViTImageProcessor(  # flips red and blue
        size=SQUARE, do_center_crop=False, do_flip_channel_order=True
    ).save_pretrained(folder)
    with pytest.raises(DataError, match="MobileViT.* does more than scale, crop and normalize.*gray levels"):
        PatchBackend(str(folder), resize=resize)


class Shifted(ProcessorPixels):
    """Off by one pixel to the right."""

    def view(self, width, height):
        x1, y1, x2, y2 = super().view(width, height)
        step = (x2 - x1) / self.width
        return (x1 + step, y1, x2 + step, y2)


def test_a_crop_that_is_off_by_one_pixel_would_be_found_out(checkpoint):
    folder = checkpoint("dinov2")
    processor = patches.load_processor(folder)
    right, normalize = patches.preprocessing_of(processor, folder, "processor")
    patches.refuse_other_preprocessing(processor, folder, right, normalize, "processor")
    shifted = Shifted(right.height, right.width, right.scaled, right.resample)
    with pytest.raises(DataError, match="does more than scale, crop and normalize"):
        patches.refuse_other_preprocessing(processor, folder, shifted, normalize, "processor")


def test_the_library_is_as_talkative_afterwards_as_before(checkpoint):
    from transformers.utils import logging

    before = logging.get_verbosity()
    try:
        logging.set_verbosity_warning()
        patches.load_vision_tower(checkpoint("clip"))
        assert logging.get_verbosity() == logging.WARNING
    finally:
        logging.set_verbosity(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_features_of_the_cpu(checkpoint):
    cpu, gpu = (PatchBackend(checkpoint("dinov2"), device=device) for device in ("cpu", "cuda"))
    batch = pictures(cpu)
    assert np.allclose(cpu.extract(batch, SIZES)["regions"], gpu.extract(batch, SIZES)["regions"], atol=1e-2)
