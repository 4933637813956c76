"""One descriptor for each image of a folder or a list -> HDF5, as tools/eval_copy.py and RDCD's teacher read it:

  python tools/extract_descriptors.py --checkpoint RUN --images photos/ --out photos.h5          a run of train_copy.py
  python tools/extract_descriptors.py --model sscd_disc_mixup.torchscript.pt --images photos/ --out photos.h5
  python tools/extract_descriptors.py --backbone resnet50 --images photos/ --out photos.h5       untrained: GeM, no head

  python tools/extract_descriptors.py --checkpoint RUN --images references/ --queries queries/ --out submission.h5

Vectors are of length 1; `norms` are those of the content vector. With --queries the file is a submission to DISC2021's
descriptor track: both sides sorted by id, at most 256 numbers each, no norms (tools/eval_copy.py --save-submission
writes whitened ones). Exit status: 0 done, 1 refused, 130 stopped (the same command with --resume goes on).
"""

from __future__ import annotations

import argparse
import sys

from ascl.core.errors import DataError


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    model = result.add_mutually_exclusive_group(required=True)
    model.add_argument("--checkpoint", help="a run of tools/train_copy.py, or one of its checkpoints")
    model.add_argument("--model", help="TorchScript file: normalised pixels -> vectors")
    model.add_argument("--backbone", help="name of a torchvision classifier, or timm:NAME, described by GeM alone")
    result.add_argument("--images", required=True, help="folder, searched at any depth, or a .txt with a path a line")
    result.add_argument("--queries", help="folder or list too: write a submission, --images being its references")
    result.add_argument("--out", required=True, help="HDF5 file to write; must not exist")
    result.add_argument("--weights", help="of --backbone: default, random:SEED or a path (default)")
    result.add_argument("--same-padding", action="store_true", help="of --backbone: for weights from TensorFlow")
    result.add_argument("--pool", choices=("gem", "class+gem"), help="of --backbone (gem)")
    result.add_argument("--normalize", choices=("imagenet", "half", "none"),
                        help="of --backbone and --model: what the weights were trained with (imagenet)")
    result.add_argument("--input-size", type=int, help="side of the square; as the run says, else 288")
    result.add_argument("--resize", choices=("squash", "crop"),
                        help="squash the whole image, or crop its centre; as the run says, else squash")
    result.add_argument("--precision", choices=("float32", "bfloat16", "float16"), default="float32")
    result.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    result.add_argument("--batch-size", type=int, default=64)
    result.add_argument("--workers", type=int, default=2, help="processes that decode; 0 = none apart")
    result.add_argument("--skip-unreadable", action="store_true", help="leave unreadable images out and list them")
    result.add_argument("--resume", action="store_true", help="go on with what a stopped call left")
    return result


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        check(options)
        from ascl.image_copy.descriptors.extract import (  # torch is slow to import: options are checked before
            extract_descriptors,
            extract_submission,
        )
        from ascl.images.read import images_of

        images, queries = images_of(options.images), images_of(options.queries) if options.queries else None
        how = {"batch_size": options.batch_size, "workers": options.workers,
               "skip_unreadable": options.skip_unreadable, "resume": options.resume}
        if queries is None:
            done = [extract_descriptors(describer_of(options), images, options.out, **how)]
        else:
            done = extract_submission(describer_of(options), queries, images, options.out, **how)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command with --resume goes on from here", file=sys.stderr)
        return 130
    for one in done:
        print(one.summary())
    if options.queries:
        queries, references = (one.shapes["vectors"][0] for one in done)
        print(f"{options.out}: {queries} queries and {references} references")
    return 0


def describer_of(options: argparse.Namespace):
    """The chosen network at work."""
    from ascl.image_copy.descriptors.choice import DescriberChoice, make_network_describer
    from ascl.images.backbones import pick_device

    choice = DescriberChoice.from_options(vars(options))
    return make_network_describer(choice, pick_device(options.device), options.precision)


def check(options: argparse.Namespace) -> None:
    """Refuse options that would be passed over in silence, and numbers that cannot be."""
    for name, least in (("input_size", 1), ("batch_size", 1), ("workers", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise DataError(f"--{name.replace('_', '-')} {value}: at least {least}")
    from ascl.image_copy.descriptors.choice import DescriberChoice

    DescriberChoice.from_options(vars(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
